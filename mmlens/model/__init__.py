"""The hookable model: vision tower, projector and decoder, and how it is run."""

from mmlens.model.generate import Generation
from mmlens.model.hooked_vlm import HookedVLM
from mmlens.model.run import Run

__all__ = ["Generation", "HookedVLM", "Run"]
