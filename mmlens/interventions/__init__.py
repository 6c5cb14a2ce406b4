"""What can be done to a running model, as frozen values; one file turns them into hooks."""

from mmlens.interventions.block import Block
from mmlens.interventions.compile import Intervention, compile_interventions
from mmlens.interventions.edits import Edit, Mean, Patch, Scale, Zero
from mmlens.interventions.heads import HEAD_BASELINES, HeadBaseline, HeadMask, ImageKV
from mmlens.interventions.ledger import Ledger, LedgerEntry
from mmlens.interventions.state import StepState

__all__ = [
    "HEAD_BASELINES",
    "Block",
    "Edit",
    "HeadBaseline",
    "HeadMask",
    "ImageKV",
    "Intervention",
    "Ledger",
    "LedgerEntry",
    "Mean",
    "Patch",
    "Scale",
    "StepState",
    "Zero",
    "compile_interventions",
]
