"""Analyses: one method a file, each ends in one public function that returns a result."""

from mmlens.analyses.attention_weight import attention_weight
from mmlens.analyses.blocked_accuracy import blocked_accuracy
from mmlens.analyses.faithfulness import faithfulness
from mmlens.analyses.head_attribution import head_attribution
from mmlens.analyses.map_similarity import map_similarity
from mmlens.analyses.random_heads import layer_matched_rankings
from mmlens.analyses.recovery import recovery
from mmlens.analyses.single_head_ablation import single_head_ablation

__all__ = [
    "attention_weight",
    "blocked_accuracy",
    "faithfulness",
    "head_attribution",
    "layer_matched_rankings",
    "map_similarity",
    "recovery",
    "single_head_ablation",
]
