"""mmlens: which attention heads and tokens carry image information into text, in vision-language models.

Everything a user needs is reachable from here, and nothing is imported before it is used: ``import mmlens``
takes milliseconds, the first touch of ``mmlens.HookedVLM`` imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlens.analyses import attention_weight as attention_weight
    from mmlens.analyses import blocked_accuracy as blocked_accuracy
    from mmlens.analyses import faithfulness as faithfulness
    from mmlens.analyses import head_attribution as head_attribution
    from mmlens.analyses import map_similarity as map_similarity
    from mmlens.analyses import recovery as recovery
    from mmlens.analyses import single_head_ablation as single_head_ablation
    from mmlens.config import ModelConfig as ModelConfig
    from mmlens.errors import MMLensError as MMLensError
    from mmlens.inputs import Box as Box
    from mmlens.inputs import Inputs as Inputs
    from mmlens.inputs import Prompt as Prompt
    from mmlens.inputs import RegionMask as RegionMask
    from mmlens.inputs import TokenMap as TokenMap
    from mmlens.interventions import Block as Block
    from mmlens.interventions import HeadMask as HeadMask
    from mmlens.interventions import Mean as Mean
    from mmlens.interventions import Patch as Patch
    from mmlens.interventions import Scale as Scale
    from mmlens.interventions import Zero as Zero
    from mmlens.model import HookedVLM as HookedVLM
    from mmlens.model import Run as Run
    from mmlens.result import AccuracyResult as AccuracyResult
    from mmlens.result import AttributionResult as AttributionResult
    from mmlens.result import FaithfulnessResult as FaithfulnessResult
    from mmlens.result import HeadScoreResult as HeadScoreResult
    from mmlens.result import MapSimilarityResult as MapSimilarityResult
    from mmlens.result import PlantedTruth as PlantedTruth
    from mmlens.result import RecoveryResult as RecoveryResult
    from mmlens.result import Result as Result

__version__ = "0.1.0"

_HOME = {
    "AccuracyResult": "result",
    "AttributionResult": "result",
    "Block": "interventions",
    "Box": "inputs",
    "FaithfulnessResult": "result",
    "HeadMask": "interventions",
    "HeadScoreResult": "result",
    "HookedVLM": "model",
    "Inputs": "inputs",
    "MMLensError": "errors",
    "MapSimilarityResult": "result",
    "Mean": "interventions",
    "ModelConfig": "config",
    "Patch": "interventions",
    "PlantedTruth": "result",
    "Prompt": "inputs",
    "RecoveryResult": "result",
    "RegionMask": "inputs",
    "Result": "result",
    "Run": "model",
    "Scale": "interventions",
    "TokenMap": "inputs",
    "Zero": "interventions",
    "attention_weight": "analyses",
    "blocked_accuracy": "analyses",
    "faithfulness": "analyses",
    "head_attribution": "analyses",
    "map_similarity": "analyses",
    "recovery": "analyses",
    "single_head_ablation": "analyses",
}
"""Public name → the room that it is imported from when it is first used."""

_ROOMS = (
    "analyses",
    "axes",
    "config",
    "datasets",
    "engine",
    "errors",
    "inputs",
    "interventions",
    "loading",
    "metrics",
    "model",
    "plots",
    "pretrained",
    "recipes",
    "reference",
    "report",
    "result",
)
"""Rooms that ``mmlens.<room>`` reaches without an import of their own."""

__all__ = [  # spelled out for type checkers; tests/test_imports.py holds it to _HOME
    "AccuracyResult",
    "AttributionResult",
    "Block",
    "Box",
    "FaithfulnessResult",
    "HeadMask",
    "HeadScoreResult",
    "HookedVLM",
    "Inputs",
    "MMLensError",
    "MapSimilarityResult",
    "Mean",
    "ModelConfig",
    "Patch",
    "PlantedTruth",
    "Prompt",
    "RecoveryResult",
    "RegionMask",
    "Result",
    "Run",
    "Scale",
    "TokenMap",
    "Zero",
    "__version__",
    "attention_weight",
    "blocked_accuracy",
    "faithfulness",
    "head_attribution",
    "map_similarity",
    "recovery",
    "single_head_ablation",
]


def __getattr__(name: str) -> Any:
    """Import a public name, or a room, on first use (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(f"mmlens.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"mmlens.{name}")
    raise AttributeError(f"module 'mmlens' has no attribute {name!r}; dir(mmlens) lists what there is")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
