"""Figures of results, one kind a file. Every function returns a plotly Figure and shows nothing."""

from mmlens.plots.accuracy_bars import accuracy_bars
from mmlens.plots.agreement import agreement
from mmlens.plots.attention_mass_curve import attention_mass_curve
from mmlens.plots.calibration import calibration
from mmlens.plots.cell_map import cell_map
from mmlens.plots.circuit_bars import circuit_bars
from mmlens.plots.circuit_map import circuit_map
from mmlens.plots.circuit_matrix import circuit_matrix
from mmlens.plots.control_bars import control_bars
from mmlens.plots.curves import curves
from mmlens.plots.dla_bars import dla_bars
from mmlens.plots.exact_bars import exact_bars
from mmlens.plots.flow_curves import flow_curves
from mmlens.plots.flow_graph import flow_graph
from mmlens.plots.head_comparison_matrix import head_comparison_matrix
from mmlens.plots.head_map import head_map
from mmlens.plots.image_overlay import image_overlay
from mmlens.plots.interaction_bars import interaction_bars
from mmlens.plots.lens_map import lens_map
from mmlens.plots.masking_bars import masking_bars
from mmlens.plots.object_token_bars import object_token_bars
from mmlens.plots.patching_agreement import patching_agreement
from mmlens.plots.patching_map import patching_map
from mmlens.plots.recovery_bars import recovery_bars
from mmlens.plots.recovery_curve import recovery_curve
from mmlens.plots.similarity_map import similarity_map
from mmlens.plots.visual_head_map import visual_head_map
from mmlens.plots.weight_concentration import weight_concentration

__all__ = [
    "accuracy_bars",
    "agreement",
    "attention_mass_curve",
    "calibration",
    "cell_map",
    "circuit_bars",
    "circuit_map",
    "circuit_matrix",
    "control_bars",
    "curves",
    "dla_bars",
    "exact_bars",
    "flow_curves",
    "flow_graph",
    "head_comparison_matrix",
    "head_map",
    "image_overlay",
    "interaction_bars",
    "lens_map",
    "masking_bars",
    "object_token_bars",
    "patching_agreement",
    "patching_map",
    "recovery_bars",
    "recovery_curve",
    "similarity_map",
    "visual_head_map",
    "weight_concentration",
]
