"""Four bars per method; what is undefined has none."""

import numpy as np

from mmlens.plots import recovery_bars
from mmlens.result import RecoveryResult
from tests.result.examples import METHODS, recovery_result


def test_bars_are_figures_of_merit_with_their_intervals() -> None:
    result = recovery_result()
    figure = recovery_bars(result)
    assert list(figure.layout.xaxis.ticktext) == METHODS
    for trace, name in zip(figure.data[:3], ["auroc", "average_precision", "recovered_at_k"], strict=True):
        assert np.allclose(trace.y, result.data[name].values, rtol=1e-3)
    ends, values = result.data["auroc_interval"].values, result.data["auroc"].values
    assert np.allclose(figure.data[0].error_y.arrayminus[:2], (values - ends[:, 0])[:2], atol=1e-3)
    assert np.allclose(figure.data[0].error_y.array[:2], (ends[:, 1] - values)[:2], atol=1e-3)
    assert figure.data[0].error_y.array[2] == 0  # one map, no interval


def test_an_undefined_correlation_has_no_bar() -> None:
    assert recovery_bars(recovery_result()).data[3].y[2] is None


def test_intervals_may_be_absent() -> None:
    result = recovery_result()
    optional = [name for name in result.data.data_vars if str(name).endswith("_interval")]
    figure = recovery_bars(RecoveryResult(data=result.data.drop_vars(optional), info=result.info))
    assert figure.data[0].error_y.array is None
    assert "bootstrap" not in figure.layout.meta["subtitle"]


def test_family_index_and_k_are_named() -> None:
    subtitle = recovery_bars(recovery_result()).layout.meta["subtitle"]
    for part in ("colour", "k = 2 of 24", "Shapley", "mean_image_tokens", "bootstrap"):
        assert part in subtitle
