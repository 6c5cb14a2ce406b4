"""Summaries and rankings of heads, against numbers worked out by hand, and checks across variables."""

import numpy as np
import pytest

from mmlens.errors import ResultError
from mmlens.result import AttributionResult
from tests.result.examples import attribution, attribution_data, run_info, with_drawings


def test_the_summary_of_one_sample_is_its_own_interval() -> None:
    result = attribution()
    view = result.summary("scene-1")
    assert np.array_equal(view["theta"].values, result.theta.values[1])
    assert np.array_equal(view["lower"].values, result.interval.values[1, ..., 0])
    assert "bootstrap" in view.attrs["interval"]


def test_the_summary_of_several_samples_is_the_t_interval_of_their_mean() -> None:
    data = attribution_data(2)
    data["theta"].values[:, 0, 0] = [1.0, 3.0]  # mean 2, standard error 1, t(0.975, 1) = 12.706
    view = AttributionResult(data=data, info=run_info()).summary()
    assert float(view["theta"][0, 0]) == pytest.approx(2.0)
    assert float(view["lower"][0, 0]) == pytest.approx(2 - 12.7062, abs=1e-4)
    assert float(view["upper"][0, 0]) == pytest.approx(2 + 12.7062, abs=1e-4)
    assert "mean over 2 samples" in view.attrs["interval"]


def test_top_heads_are_the_planted_ones_in_order() -> None:
    table = attribution().top(3)
    assert list(table.columns) == ["layer", "head", "theta", "lower", "upper"]
    assert table[["layer", "head"]].values.tolist() == [[3, 1], [2, 2], [4, 0]]
    assert table["theta"].is_monotonic_decreasing
    assert len(attribution().top(99)) == 24


def test_top_heads_of_one_sample() -> None:
    data = attribution_data(2)
    data["theta"].values[1] = 0.0
    data["theta"].values[1, 5, 2] = 9.0
    data["interval"].values[..., 0], data["interval"].values[..., 1] = -10.0, 10.0
    best = AttributionResult(data=data, info=run_info()).top(1, sample=1).iloc[0]
    assert (best["layer"], best["head"], best["theta"]) == (5, 2, 9.0)


def test_properties_are_the_variables() -> None:
    result = attribution()
    for name in ("theta", "interval", "r2", "heldout_pearson"):
        assert getattr(result, name).identical(result.data[name])


def test_swapped_bounds_are_refused() -> None:
    data = attribution_data()
    data["interval"].values[0, 0, 0] = [1.0, -1.0]
    with pytest.raises(ResultError, match="lower end above"):
        AttributionResult(data=data, info=run_info())


@pytest.mark.parametrize("name", ["image_width", "role", "heldout_predicted", "cell_box"])
def test_half_a_set_is_refused(name: str) -> None:
    with pytest.raises(ResultError, match="belong together"):
        AttributionResult(data=with_drawings(attribution_data()).drop_vars(name), info=run_info())


def test_cells_without_an_image_are_refused() -> None:
    data = with_drawings(attribution_data()).drop_vars(["image", "image_height", "image_width"])
    with pytest.raises(ResultError, match="needs image"):
        AttributionResult(data=data, info=run_info())


def test_the_headline_names_fit_cost_and_strongest_head() -> None:
    text = attribution().headline()
    for part in ("L3H1", "R² 0.9", "Pearson 0.9", "split-half r 0.9", "1536 masks in 12.3 s;"):
        assert part in text


def with_info(**changes: object) -> AttributionResult:
    return AttributionResult(data=attribution_data(), info=run_info().model_copy(update=changes))


def test_masks_per_second_are_runs_over_time() -> None:
    timed = with_info(seconds=4.0, settings={"n_runs": 1000})
    assert timed.masks_per_second == 250 and timed.seconds == 4 and "(250 masks/s)" in timed.headline()


@pytest.mark.parametrize(
    "changes",
    [{"seconds": 0.0, "settings": {"n_runs": 1000}}, {"seconds": 4.0, "settings": {"n_runs": ["1", "2"]}}],
)
def test_what_was_not_recorded_is_not_made_up(changes: dict[str, object]) -> None:
    untimed = with_info(**changes)
    assert untimed.masks_per_second is None and "masks/s" not in untimed.headline()
    assert untimed.seconds == (changes["seconds"] or None)


def test_undefined_evidence_is_said() -> None:
    data = attribution_data()
    data["r2"].values[:] = np.nan
    text = AttributionResult(data=data.drop_vars("split_half"), info=run_info()).headline()
    assert "R² undefined" in text and "split-half" not in text
