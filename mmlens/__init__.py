"""mmlens: which attention heads and tokens carry image information into text, in vision-language models.

Everything a user needs is reachable from here, and nothing is imported before it is used: ``import mmlens``
takes milliseconds, the first touch of ``mmlens.HookedVLM`` imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlens.analyses import CircuitGroup as CircuitGroup
    from mmlens.analyses import HeadSet as HeadSet
    from mmlens.analyses import Receivers as Receivers
    from mmlens.analyses import activation_patching as activation_patching
    from mmlens.analyses import atp_star as atp_star
    from mmlens.analyses import attention_flow as attention_flow
    from mmlens.analyses import attention_weight as attention_weight
    from mmlens.analyses import attribution_patching as attribution_patching
    from mmlens.analyses import blocked_accuracy as blocked_accuracy
    from mmlens.analyses import choose_heads as choose_heads
    from mmlens.analyses import circuit as circuit
    from mmlens.analyses import compare_circuits as compare_circuits
    from mmlens.analyses import dataset_distances as dataset_distances
    from mmlens.analyses import direct_effects as direct_effects
    from mmlens.analyses import direct_logit_attribution as direct_logit_attribution
    from mmlens.analyses import effect_bound as effect_bound
    from mmlens.analyses import faithfulness as faithfulness
    from mmlens.analyses import flow_agreement as flow_agreement
    from mmlens.analyses import gate_attribution as gate_attribution
    from mmlens.analyses import head_attribution as head_attribution
    from mmlens.analyses import head_interactions as head_interactions
    from mmlens.analyses import image_maps as image_maps
    from mmlens.analyses import information_flow as information_flow
    from mmlens.analyses import integrated_gradients as integrated_gradients
    from mmlens.analyses import logit_lens as logit_lens
    from mmlens.analyses import map_similarity as map_similarity
    from mmlens.analyses import mention_flow as mention_flow
    from mmlens.analyses import model_correlations as model_correlations
    from mmlens.analyses import object_token_ablation as object_token_ablation
    from mmlens.analyses import path_patching as path_patching
    from mmlens.analyses import pooled_head_attribution as pooled_head_attribution
    from mmlens.analyses import recovery as recovery
    from mmlens.analyses import reference_statistics as reference_statistics
    from mmlens.analyses import score_rank_correlations as score_rank_correlations
    from mmlens.analyses import single_head_ablation as single_head_ablation
    from mmlens.analyses import visual_head_masking as visual_head_masking
    from mmlens.analyses import visual_heads as visual_heads
    from mmlens.config import ModelConfig as ModelConfig
    from mmlens.errors import MMLensError as MMLensError
    from mmlens.inputs import Box as Box
    from mmlens.inputs import Inputs as Inputs
    from mmlens.inputs import Prompt as Prompt
    from mmlens.inputs import RegionMask as RegionMask
    from mmlens.inputs import TokenMap as TokenMap
    from mmlens.interventions import BackPatch as BackPatch
    from mmlens.interventions import Block as Block
    from mmlens.interventions import HeadMask as HeadMask
    from mmlens.interventions import Mean as Mean
    from mmlens.interventions import Noise as Noise
    from mmlens.interventions import Patch as Patch
    from mmlens.interventions import Replace as Replace
    from mmlens.interventions import Resample as Resample
    from mmlens.interventions import Scale as Scale
    from mmlens.interventions import Steer as Steer
    from mmlens.interventions import Uniform as Uniform
    from mmlens.interventions import Zero as Zero
    from mmlens.model import HookedVLM as HookedVLM
    from mmlens.model import Run as Run
    from mmlens.result import AccuracyResult as AccuracyResult
    from mmlens.result import AttributionResult as AttributionResult
    from mmlens.result import CircuitComparisonResult as CircuitComparisonResult
    from mmlens.result import CircuitResult as CircuitResult
    from mmlens.result import DirectLogitAttributionResult as DirectLogitAttributionResult
    from mmlens.result import FaithfulnessResult as FaithfulnessResult
    from mmlens.result import FlowResult as FlowResult
    from mmlens.result import HeadComparisonResult as HeadComparisonResult
    from mmlens.result import HeadMaskingResult as HeadMaskingResult
    from mmlens.result import HeadScoreResult as HeadScoreResult
    from mmlens.result import ImageMapResult as ImageMapResult
    from mmlens.result import InteractionResult as InteractionResult
    from mmlens.result import LogitLensResult as LogitLensResult
    from mmlens.result import MapSimilarityResult as MapSimilarityResult
    from mmlens.result import ObjectTokensResult as ObjectTokensResult
    from mmlens.result import PatchingResult as PatchingResult
    from mmlens.result import PlantedTruth as PlantedTruth
    from mmlens.result import PooledAttributionResult as PooledAttributionResult
    from mmlens.result import RecoveryResult as RecoveryResult
    from mmlens.result import ReferenceStatistics as ReferenceStatistics
    from mmlens.result import Result as Result
    from mmlens.result import VisualHeadsResult as VisualHeadsResult
    from mmlens.result import paired_leads as paired_leads
    from mmlens.sweeps import RayExecutor as RayExecutor
    from mmlens.sweeps import SweepReport as SweepReport
    from mmlens.sweeps import collect as collect
    from mmlens.sweeps import sweep as sweep

__version__ = "0.1.0"

_HOME = {
    "AccuracyResult": "result",
    "AttributionResult": "result",
    "BackPatch": "interventions",
    "Block": "interventions",
    "Box": "inputs",
    "CircuitComparisonResult": "result",
    "CircuitGroup": "analyses",
    "CircuitResult": "result",
    "DirectLogitAttributionResult": "result",
    "FaithfulnessResult": "result",
    "FlowResult": "result",
    "HeadComparisonResult": "result",
    "HeadMask": "interventions",
    "HeadMaskingResult": "result",
    "HeadScoreResult": "result",
    "HeadSet": "analyses",
    "HookedVLM": "model",
    "ImageMapResult": "result",
    "Inputs": "inputs",
    "InteractionResult": "result",
    "LogitLensResult": "result",
    "MMLensError": "errors",
    "MapSimilarityResult": "result",
    "Mean": "interventions",
    "ModelConfig": "config",
    "Noise": "interventions",
    "ObjectTokensResult": "result",
    "Patch": "interventions",
    "PatchingResult": "result",
    "PlantedTruth": "result",
    "PooledAttributionResult": "result",
    "Prompt": "inputs",
    "RayExecutor": "sweeps",
    "Receivers": "analyses",
    "RecoveryResult": "result",
    "ReferenceStatistics": "result",
    "RegionMask": "inputs",
    "Replace": "interventions",
    "Resample": "interventions",
    "Result": "result",
    "Run": "model",
    "Scale": "interventions",
    "Steer": "interventions",
    "SweepReport": "sweeps",
    "TokenMap": "inputs",
    "Uniform": "interventions",
    "VisualHeadsResult": "result",
    "Zero": "interventions",
    "activation_patching": "analyses",
    "atp_star": "analyses",
    "attention_flow": "analyses",
    "attention_weight": "analyses",
    "attribution_patching": "analyses",
    "blocked_accuracy": "analyses",
    "choose_heads": "analyses",
    "circuit": "analyses",
    "collect": "sweeps",
    "compare_circuits": "analyses",
    "dataset_distances": "analyses",
    "direct_effects": "analyses",
    "direct_logit_attribution": "analyses",
    "effect_bound": "analyses",
    "faithfulness": "analyses",
    "flow_agreement": "analyses",
    "gate_attribution": "analyses",
    "head_attribution": "analyses",
    "head_interactions": "analyses",
    "information_flow": "analyses",
    "image_maps": "analyses",
    "integrated_gradients": "analyses",
    "logit_lens": "analyses",
    "map_similarity": "analyses",
    "mention_flow": "analyses",
    "model_correlations": "analyses",
    "object_token_ablation": "analyses",
    "paired_leads": "result",
    "path_patching": "analyses",
    "pooled_head_attribution": "analyses",
    "recovery": "analyses",
    "reference_statistics": "analyses",
    "score_rank_correlations": "analyses",
    "single_head_ablation": "analyses",
    "sweep": "sweeps",
    "visual_head_masking": "analyses",
    "visual_heads": "analyses",
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
    "sweeps",
)
"""Rooms that ``mmlens.<room>`` reaches without an import of their own."""

__all__ = [  # spelled out for type checkers; tests/test_imports.py holds it to _HOME
    "AccuracyResult",
    "AttributionResult",
    "BackPatch",
    "Block",
    "Box",
    "CircuitComparisonResult",
    "CircuitGroup",
    "CircuitResult",
    "DirectLogitAttributionResult",
    "FaithfulnessResult",
    "FlowResult",
    "HeadComparisonResult",
    "HeadMask",
    "HeadMaskingResult",
    "HeadScoreResult",
    "HeadSet",
    "HookedVLM",
    "ImageMapResult",
    "Inputs",
    "InteractionResult",
    "LogitLensResult",
    "MMLensError",
    "MapSimilarityResult",
    "Mean",
    "ModelConfig",
    "Noise",
    "ObjectTokensResult",
    "Patch",
    "PatchingResult",
    "PlantedTruth",
    "PooledAttributionResult",
    "Prompt",
    "RayExecutor",
    "Receivers",
    "RecoveryResult",
    "ReferenceStatistics",
    "RegionMask",
    "Replace",
    "Resample",
    "Result",
    "Run",
    "Scale",
    "Steer",
    "SweepReport",
    "TokenMap",
    "Uniform",
    "VisualHeadsResult",
    "Zero",
    "__version__",
    "activation_patching",
    "atp_star",
    "attention_flow",
    "attention_weight",
    "attribution_patching",
    "blocked_accuracy",
    "choose_heads",
    "circuit",
    "collect",
    "compare_circuits",
    "dataset_distances",
    "direct_effects",
    "direct_logit_attribution",
    "effect_bound",
    "faithfulness",
    "flow_agreement",
    "gate_attribution",
    "head_attribution",
    "head_interactions",
    "image_maps",
    "information_flow",
    "integrated_gradients",
    "logit_lens",
    "map_similarity",
    "mention_flow",
    "model_correlations",
    "object_token_ablation",
    "paired_leads",
    "path_patching",
    "pooled_head_attribution",
    "recovery",
    "reference_statistics",
    "score_rank_correlations",
    "single_head_ablation",
    "sweep",
    "visual_head_masking",
    "visual_heads",
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
