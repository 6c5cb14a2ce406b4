"""The map shows the summary of the result: values, dots, limits, one view per sample."""

import numpy as np
import pytest

from mmlens.plots import head_map
from mmlens.result import HeadScoreResult
from tests.result.examples import attribution, head_score, pooled_attribution


def test_cells_are_the_mean_attribution_on_a_centred_scale() -> None:
    result = attribution()
    heat = head_map(result).data[0]
    assert np.allclose(heat.z, result.theta.values.mean(axis=0), atol=1e-3)
    assert heat.zmin == -heat.zmax and heat.zmax >= np.abs(result.theta.values).max() - 1e-12
    assert "logit" in heat.hovertemplate and heat.colorbar.title.text == "logit"


def test_dots_stand_exactly_where_the_interval_excludes_zero() -> None:
    result = attribution()
    view = result.summary()
    sure = (view["lower"].values > 0) | (view["upper"].values < 0)
    dots = head_map(result).data[1]
    found = {(int(layer), int(head)) for layer, head in zip(dots.y, dots.x, strict=True)}
    assert found == {(int(layer), int(head)) for layer, head in np.argwhere(sure)}
    assert {(3, 1), (2, 2)} <= found


def test_hover_shows_the_interval() -> None:
    result = attribution()
    view, heat = result.summary(), head_map(result).data[0]
    assert np.allclose(heat.customdata[..., 0], view["lower"].values, rtol=1e-3)
    assert np.allclose(heat.customdata[..., 1], view["upper"].values, rtol=1e-3)


def test_one_sample_is_drawn_alone() -> None:
    result = attribution()
    figure = head_map(result, sample="scene-1")
    assert len(figure.data) == 2 and not figure.layout.updatemenus
    assert np.allclose(figure.data[0].z, result.theta.values[1], atol=1e-3)
    assert "sample scene-1" in figure.layout.meta["subtitle"]


def test_the_menu_shows_one_view_at_a_time() -> None:
    result = attribution()
    figure = head_map(result)
    buttons = figure.layout.updatemenus[0].buttons
    assert len(buttons) == 4 and len(figure.data) == 8
    for i, button in enumerate(buttons):
        visible = button.args[0]["visible"]
        assert [j for j, shown in enumerate(visible) if shown] == [2 * i, 2 * i + 1]
    assert np.allclose(figure.data[2].z, result.theta.values[0], atol=1e-3)
    assert [trace.visible for trace in figure.data] == [True, True] + [False] * 6
    assert not head_map(result, menu=False).layout.updatemenus


def test_layer_zero_is_at_the_top() -> None:
    low, high = head_map(attribution()).layout.yaxis.range
    assert (low, high) == (5.5, -0.5)


def test_a_given_limit_makes_maps_comparable() -> None:
    assert head_map(attribution(), limit=5.0).data[0].zmax == 5.0


def test_other_scores_carry_their_own_unit_and_sign() -> None:
    figure = head_map(head_score())
    assert figure.data[0].colorbar.title.text == "share of attention"
    assert "positive = reads the image" in figure.layout.meta["subtitle"]
    assert "n = 3" in figure.layout.meta["subtitle"]


def texts_in(value: object) -> list[str]:
    """Every string of a figure's data and layout."""
    if isinstance(value, dict):
        return [text for key, item in value.items() if key != "meta" for text in texts_in(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


def test_hostile_names_are_shown_as_text() -> None:
    one = head_score()
    data = one.data.assign_attrs(method="<a href='javascript:x'>", unit="<script>")
    data = data.assign_coords(question=("sample", ["<img src=x onerror=alert(1)>"] * 3))
    figure = head_map(HeadScoreResult(data=data, info=one.info), title="<iframe>")
    texts = " ".join(texts_in(figure.to_dict()))
    for tag in ("<a ", "<script", "<img", "<iframe"):
        assert tag not in texts and tag.replace("<", "&lt;") in texts


@pytest.mark.parametrize("n", [1, 2])
def test_the_subtitle_says_which_interval_it_is(n: int) -> None:
    subtitle = head_map(attribution(n)).layout.meta["subtitle"]
    assert ("bootstrap" in subtitle) == (n == 1)


def test_a_shared_map_is_drawn_alone() -> None:
    result = pooled_attribution()
    figure = head_map(result)
    assert len(figure.data) == 2 and not figure.layout.updatemenus
    assert np.allclose(figure.data[0].z, result.theta.values, atol=1e-3)
    assert "n = 3" in figure.layout.meta["subtitle"]
