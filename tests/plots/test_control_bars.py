"""Trained and random model side by side; undefined and very negative values are said, not hidden."""

import numpy as np

from mmlens.plots import control_bars
from mmlens.result import AttributionResult
from tests.result.examples import attribution, faithfulness


def with_r2(values: list[float]) -> AttributionResult:
    result = attribution(random=True)
    return AttributionResult(
        data=result.data.assign(r2=result.data["r2"].copy(data=values)), info=result.info
    )


def test_bars_are_means_and_dots_are_samples() -> None:
    trained, control = attribution(), attribution(random=True)
    figure = control_bars(trained, control, comparisons=faithfulness())
    assert [trace.name for trace in figure.data[::2]] == ["scenes", "random weights"]
    merits = ("held-out<br>R²", "held-out<br>Pearson", "faithfulness<br>area", "completeness<br>area")
    assert tuple(figure.data[0].x) == merits
    assert len(figure.data[2].x) == 2
    assert np.isclose(figure.data[0].y[0], trained.r2.values.mean())
    assert np.isclose(figure.data[2].y[0], control.r2.values.mean())
    assert np.allclose(figure.data[3].y[:3], control.r2.values, rtol=1e-3)


def test_very_negative_fits_are_drawn_at_the_edge() -> None:
    figure = control_bars(attribution(), with_r2([-50.0, 0.5, 0.5]))
    assert figure.data[2].y[0] == -1.0 and list(figure.data[3].y[:3]) == [-1.0, 0.5, 0.5]
    assert figure.data[2].text[0] == "−16.33"  # the true mean, not the mean of what is drawn
    assert "true means" in figure.layout.meta["subtitle"]


def test_undefined_fits_are_named() -> None:
    figure = control_bars(attribution(), with_r2([np.nan] * 3))
    assert figure.data[2].text[0] == "undefined" and figure.data[2].y[0] is None
