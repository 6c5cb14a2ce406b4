"""One bar per model and condition; the majority rate spans each family."""

import numpy as np

from mmlens.plots import accuracy_bars
from mmlens.result import AccuracyResult
from tests.result.examples import accuracy


def test_bars_are_accuracies_with_their_intervals() -> None:
    result = accuracy()
    figure = accuracy_bars({"scenes": result, "random": accuracy(random=True)})
    names = [trace.name for trace in figure.data]
    assert names[:4] == ["scenes, clean", "scenes, blocked", "random, clean", "random, blocked"]
    shares, ends = result.data["accuracy"].values, result.data["interval"].values
    assert np.allclose(figure.data[1].y, shares[:, 1])
    assert np.allclose(figure.data[1].error_y.array, ends[:, 1, 1] - shares[:, 1], atol=1e-3)
    assert np.allclose(figure.data[1].error_y.arrayminus, shares[:, 1] - ends[:, 1, 0], atol=1e-3)


def test_the_majority_rate_spans_every_family() -> None:
    majority = accuracy_bars(accuracy()).data[-1]
    assert list(majority.x[:3]) == [-0.45, 0.45, None]
    assert [y for y in majority.y[::3]] == [0.14, 0.23, 0.34]


def test_one_model_is_named_by_condition_only_and_intervals_may_be_absent() -> None:
    result = accuracy()
    figure = accuracy_bars(AccuracyResult(data=result.data.drop_vars("interval"), info=result.info))
    assert [trace.name for trace in figure.data[:2]] == ["clean", "blocked"]
    assert figure.data[0].error_y.array is None
    assert list(figure.layout.xaxis.ticktext) == ["object", "colour", "count"]


def test_the_conditions_of_a_survey_look_different() -> None:
    """Seven conditions, as of a model of six layers."""
    result = accuracy()
    names = ["clean", "blocked", *(f"from {k}" for k in range(1, 6))]
    wide = result.data.isel(condition=[0, 1, 1, 1, 1, 1, 1]).assign_coords(condition=names)
    bars = accuracy_bars(AccuracyResult(data=wide, info=result.info)).data[:-1]
    assert [bar.name for bar in bars] == names
    assert len({bar.marker.pattern.shape for bar in bars}) == 7
