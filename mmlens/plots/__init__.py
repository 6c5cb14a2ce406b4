"""Figures of results, one kind a file. Every function returns a plotly Figure and shows nothing."""

from mmlens.plots.accuracy_bars import accuracy_bars
from mmlens.plots.agreement import agreement
from mmlens.plots.calibration import calibration
from mmlens.plots.control_bars import control_bars
from mmlens.plots.curves import curves
from mmlens.plots.exact_bars import exact_bars
from mmlens.plots.head_map import head_map
from mmlens.plots.image_overlay import image_overlay
from mmlens.plots.recovery_bars import recovery_bars
from mmlens.plots.similarity_map import similarity_map

__all__ = [
    "accuracy_bars",
    "agreement",
    "calibration",
    "control_bars",
    "curves",
    "exact_bars",
    "head_map",
    "image_overlay",
    "recovery_bars",
    "similarity_map",
]
