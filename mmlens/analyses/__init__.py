"""Analyses: one method a file, each ends in one public function that returns a result."""

from mmlens.analyses.activation_patching import activation_patching
from mmlens.analyses.atp_star import atp_star
from mmlens.analyses.attention_flow import attention_flow
from mmlens.analyses.attention_weight import attention_weight
from mmlens.analyses.attribution_patching import attribution_patching
from mmlens.analyses.blocked_accuracy import blocked_accuracy
from mmlens.analyses.circuit_comparison import CircuitGroup, compare_circuits, jaccard
from mmlens.analyses.circuit_sets import HeadSet, choose_heads
from mmlens.analyses.circuits import circuit
from mmlens.analyses.direct_effects import direct_effects
from mmlens.analyses.direct_logit_attribution import direct_logit_attribution
from mmlens.analyses.effect_bound import EffectBound, effect_bound
from mmlens.analyses.faithfulness import faithfulness
from mmlens.analyses.flow_agreement import FlowAgreement, flow_agreement
from mmlens.analyses.gate_attribution import gate_attribution
from mmlens.analyses.head_attribution import head_attribution
from mmlens.analyses.head_score_comparison import (
    dataset_distances,
    model_correlations,
    score_rank_correlations,
)
from mmlens.analyses.image_maps import image_maps
from mmlens.analyses.image_token_gradients import image_token_gradients
from mmlens.analyses.information_flow import information_flow
from mmlens.analyses.integrated_gradients import integrated_gradients
from mmlens.analyses.interactions import head_interactions
from mmlens.analyses.logit_lens import logit_lens
from mmlens.analyses.map_similarity import map_similarity
from mmlens.analyses.mention_flow import mention_flow
from mmlens.analyses.object_tokens import object_token_ablation
from mmlens.analyses.pairs import Pairs, as_pairs, noisy_images, swapped_images
from mmlens.analyses.path_patching import Receivers, path_patching
from mmlens.analyses.pooled_head_attribution import pooled_head_attribution
from mmlens.analyses.random_heads import layer_matched_rankings
from mmlens.analyses.recovery import recovery
from mmlens.analyses.reference_statistics import reference_statistics
from mmlens.analyses.single_head_ablation import single_head_ablation
from mmlens.analyses.visual_head_masking import visual_head_masking
from mmlens.analyses.visual_heads import visual_heads

__all__ = [
    "CircuitGroup",
    "EffectBound",
    "FlowAgreement",
    "HeadSet",
    "Pairs",
    "Receivers",
    "activation_patching",
    "as_pairs",
    "atp_star",
    "attention_flow",
    "attention_weight",
    "attribution_patching",
    "blocked_accuracy",
    "choose_heads",
    "circuit",
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
    "image_token_gradients",
    "information_flow",
    "integrated_gradients",
    "jaccard",
    "layer_matched_rankings",
    "logit_lens",
    "map_similarity",
    "mention_flow",
    "model_correlations",
    "noisy_images",
    "object_token_ablation",
    "path_patching",
    "pooled_head_attribution",
    "recovery",
    "reference_statistics",
    "score_rank_correlations",
    "single_head_ablation",
    "swapped_images",
    "visual_head_masking",
    "visual_heads",
]
