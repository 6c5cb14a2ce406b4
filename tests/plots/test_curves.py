"""Curves show means over samples, their bands, and random draws as median and quartiles."""

import numpy as np
import pytest

from mmlens.plots import curves
from mmlens.result import FaithfulnessResult
from tests.result.examples import METHODS, faithfulness


def lines(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data if trace.name}


def test_one_line_per_method_through_the_mean_over_samples() -> None:
    result = faithfulness()
    found = lines(curves(result))
    for i, method in enumerate(METHODS):
        trace = next(trace for name, trace in found.items() if name.startswith(method))
        assert np.allclose(trace.y, result.data["faithfulness"].values[i].mean(axis=0), rtol=1e-3)
        assert np.array_equal(trace.x, result.data["size"].values)


def test_the_legend_gives_area_and_k80() -> None:
    result = faithfulness()
    area = float(result.data["auc_faithfulness"][0].mean())
    assert f"head attribution (area {area:.2f}, 0.8 at 12 heads)" in lines(curves(result))
    data = result.data.assign(k80=result.data["k80"].copy(data=[np.nan, 1.0, 1.0]))
    assert any(
        "never at 0.8" in name for name in lines(curves(FaithfulnessResult(data=data, info=result.info)))
    )


def test_random_heads_are_median_and_quartiles_over_draws() -> None:
    result = faithfulness()
    figure = curves(result)
    draws = result.data["random_faithfulness"].values.mean(axis=1)
    median = next(trace for name, trace in lines(figure).items() if name.startswith("random heads"))
    assert np.allclose(median.y, np.median(draws, axis=0), rtol=1e-3)
    band = next(trace for trace in figure.data if trace.legendgroup == "random heads" and not trace.name)
    low, high = np.quantile(draws, [0.25, 0.75], axis=0)
    assert np.allclose(band.y, np.concatenate([low, high[::-1]]), rtol=1e-3)


def test_bands_run_along_the_lower_end_and_back_along_the_upper() -> None:
    result = faithfulness()
    band = next(trace for trace in curves(result).data if trace.legendgroup == METHODS[0] and not trace.name)
    ends = result.data["faithfulness_interval"].values[0]
    assert np.allclose(band.y, np.concatenate([ends[:, 0], ends[::-1, 1]]), rtol=1e-3)


@pytest.mark.parametrize(
    ("which", "axis"), [("faithfulness", "heads kept"), ("completeness", "heads removed")]
)
def test_each_curve_has_its_own_data_and_axis(which, axis: str) -> None:
    result = faithfulness()
    figure = curves(result, which=which)
    assert figure.layout.xaxis.title.text == axis and figure.layout.yaxis.title.text == which
    trace = next(trace for name, trace in lines(figure).items() if name.startswith(METHODS[1]))
    assert np.allclose(trace.y, result.data[which].values[1].mean(axis=0), rtol=1e-3)


def test_optional_variables_may_be_absent() -> None:
    result = faithfulness()
    optional = [name for name, spec in FaithfulnessResult.variables.items() if not spec.required]
    data = result.data.drop_vars(optional, errors="ignore").drop_dims("draw", errors="ignore")
    figure = curves(FaithfulnessResult(data=data, info=result.info))
    assert len(figure.data) == len(METHODS)


def test_metric_n_and_baseline_are_named() -> None:
    subtitle = curves(faithfulness()).layout.meta["subtitle"]
    for part in ("logit difference", "n = 3", "mean_image_tokens", "12 draws"):
        assert part in subtitle
