"""Results: named arrays with unit, sign, uncertainty and provenance; they load and plot without a model."""

from mmlens.result.accuracy import AccuracyResult
from mmlens.result.archive import write_atomically
from mmlens.result.attribution import AttributionResult
from mmlens.result.base import REMOVAL_SIGN, Result
from mmlens.result.circuit_comparison import CircuitComparisonResult
from mmlens.result.circuits import CircuitResult
from mmlens.result.direct_logit_attribution import WRITE_SIGN, DirectLogitAttributionResult
from mmlens.result.drawing import image_variables, token_variables
from mmlens.result.estimate_agreement import EstimateAgreement, estimate_agreement
from mmlens.result.faithfulness import FaithfulnessResult
from mmlens.result.flow import FlowResult
from mmlens.result.head_comparison import HeadComparisonResult
from mmlens.result.head_masking import HeadMaskingResult
from mmlens.result.head_results import HeadResult, mean_map
from mmlens.result.head_score import HeadScoreResult
from mmlens.result.image_maps import ImageMapResult
from mmlens.result.interactions import InteractionResult
from mmlens.result.logit_lens import LogitLensResult
from mmlens.result.map_similarity import MapSimilarityResult
from mmlens.result.object_tokens import ObjectTokensResult
from mmlens.result.paired_leads import paired_leads
from mmlens.result.patching import PATCH_SIGN, PatchingResult
from mmlens.result.planted_truth import PlantedTruth
from mmlens.result.pooled_attribution import PooledAttributionResult
from mmlens.result.provenance import RunInfo
from mmlens.result.recovery import RecoveryResult
from mmlens.result.reference_statistics import ReferenceStatistics
from mmlens.result.schema import Variable
from mmlens.result.visual_heads import VisualHeadsResult

__all__ = [
    "PATCH_SIGN",
    "REMOVAL_SIGN",
    "WRITE_SIGN",
    "AccuracyResult",
    "AttributionResult",
    "CircuitComparisonResult",
    "CircuitResult",
    "DirectLogitAttributionResult",
    "EstimateAgreement",
    "FaithfulnessResult",
    "FlowResult",
    "HeadComparisonResult",
    "HeadMaskingResult",
    "HeadResult",
    "HeadScoreResult",
    "ImageMapResult",
    "InteractionResult",
    "LogitLensResult",
    "MapSimilarityResult",
    "ObjectTokensResult",
    "PatchingResult",
    "PlantedTruth",
    "PooledAttributionResult",
    "RecoveryResult",
    "ReferenceStatistics",
    "Result",
    "RunInfo",
    "Variable",
    "VisualHeadsResult",
    "estimate_agreement",
    "image_variables",
    "mean_map",
    "paired_leads",
    "token_variables",
    "write_atomically",
]
