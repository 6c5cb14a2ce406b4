"""Results: named arrays with unit, sign, uncertainty and provenance; they load and plot without a model."""

from mmlens.result.accuracy import AccuracyResult
from mmlens.result.archive import write_atomically
from mmlens.result.attribution import AttributionResult
from mmlens.result.base import REMOVAL_SIGN, Result
from mmlens.result.drawing import image_variables, token_variables
from mmlens.result.faithfulness import FaithfulnessResult
from mmlens.result.head_score import HeadScoreResult
from mmlens.result.map_similarity import MapSimilarityResult
from mmlens.result.planted_truth import PlantedTruth
from mmlens.result.provenance import RunInfo
from mmlens.result.recovery import RecoveryResult
from mmlens.result.schema import Variable

__all__ = [
    "REMOVAL_SIGN",
    "AccuracyResult",
    "AttributionResult",
    "FaithfulnessResult",
    "HeadScoreResult",
    "MapSimilarityResult",
    "PlantedTruth",
    "RecoveryResult",
    "Result",
    "RunInfo",
    "Variable",
    "image_variables",
    "token_variables",
    "write_atomically",
]
