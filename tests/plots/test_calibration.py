"""Every held-out mask is a point at (predicted, measured)."""

import numpy as np
import pytest

from mmlens.errors import ResultError
from mmlens.plots import calibration
from mmlens.result import AttributionResult
from tests.result.examples import attribution, attribution_data, run_info


def test_points_are_predictions_and_measurements() -> None:
    result = attribution()
    figure = calibration(result)
    assert len(figure.data) == 1 + result.n
    assert np.allclose(figure.data[1].x, result.data["heldout_predicted"].values[0], rtol=1e-3)
    assert np.allclose(figure.data[1].y, result.data["heldout_measured"].values[0], rtol=1e-3)
    assert np.array_equal(figure.data[0].x, figure.data[0].y)


def test_units_and_fit_are_named() -> None:
    figure = calibration(attribution())
    assert figure.layout.xaxis.title.text == "predicted logit difference (logit)"
    assert "120 fresh masks" in figure.layout.meta["subtitle"] and "R² 0.9" in figure.layout.meta["subtitle"]


def test_many_samples_share_one_colour_and_leave_the_legend() -> None:
    figure = calibration(attribution(9))
    assert not any(trace.showlegend for trace in figure.data[1:])


def test_without_held_out_masks_there_is_nothing_to_draw() -> None:
    data = attribution_data().drop_vars(["heldout_predicted", "heldout_measured"])
    with pytest.raises(ResultError, match="held-out"):
        calibration(AttributionResult(data=data, info=run_info()))
