"""A figure in a page: its JSON cannot end the script element and means the same."""

import json

import plotly.graph_objects as go
import pytest

from mmlens.plots import curves, head_map
from mmlens.report.figures import embed, script_safe
from tests.result.examples import attribution, faithfulness


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--", "a & b", "\u2028\u2029", "漢"]
)
def test_escaped_json_means_the_same_and_holds_no_markup(text: str) -> None:
    safe = script_safe(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(safe) == {"x": text}
    assert not set(safe) & set("<>&\u2028\u2029")


def test_title_and_caption_move_out_of_the_figure() -> None:
    figure = curves(faithfulness(), title="A <b> title")
    part = embed(figure, "f")
    spec = json.loads(part.json)
    assert part.title == "A <b> title" and "n = 3" in part.caption
    assert spec["layout"]["title"]["text"] == "" and spec["layout"]["height"] == part.height
    assert figure.layout.title.text.startswith("<b>A &lt;b&gt; title")  # the figure itself is unchanged


def test_a_menu_keeps_its_room_above_the_plot() -> None:
    with_menu, without = embed(head_map(attribution()), "a"), embed(head_map(attribution(), menu=False), "b")
    tops = [json.loads(part.json)["layout"]["margin"]["t"] for part in (with_menu, without)]
    assert tops[0] >= 48 > tops[1]


def test_the_json_is_the_whole_figure() -> None:
    figure = head_map(attribution())
    back = go.Figure(json.loads(embed(figure, "f").json))
    assert len(back.data) == len(figure.data) and len(back.layout.updatemenus) == 1
