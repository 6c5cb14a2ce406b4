"""A cell per two groups; hovering tells intervals, and of different groups their gap."""

import numpy as np

from mmlens.plots import similarity_map
from mmlens.result import MapSimilarityResult
from tests.result.examples import map_similarity


def test_cells_are_cosines_on_a_symmetric_scale() -> None:
    result = map_similarity()
    heat = similarity_map(result).data[0]
    assert np.allclose(heat.z, result.data["cosine"].values)
    assert (heat.zmin, heat.zmax) == (-0.9, 0.9)
    assert similarity_map(result, limit=1.0).data[0].zmax == 1.0


def test_hovering_tells_interval_gap_and_p_value() -> None:
    text = similarity_map(map_similarity()).data[0].customdata
    assert text[0][0] == "object<br><b>0.900</b> [0.800, 0.950]"
    assert text[1][2] == (
        "colour, count<br><b>0.500</b> [0.400, 0.550]<br>gap +0.250 [0.150, 0.350], p = 0.001"
    )
    assert text[2][1].startswith("count, colour<br><b>0.500</b>") and text[2][1].endswith(text[1][2][-20:])


def test_axes_and_subtitle_name_groups_score_and_n() -> None:
    figure = similarity_map(map_similarity())
    assert list(figure.layout.xaxis.ticktext) == ["object", "colour", "count"]
    assert list(figure.layout.yaxis.range) == [2.5, -0.5]  # the first group on top
    for part in ("head attribution of the logit", "n = 24"):
        assert part in figure.layout.meta["subtitle"]


def test_names_are_shown_literally() -> None:
    result = map_similarity()
    names = np.array(["<b>a</b>", "b", "c"], dtype=object)
    data = result.data.assign_coords(group=names, group_other=names)
    data = data.assign(first=("pair", names[[0, 0, 1]]), second=("pair", names[[1, 2, 2]]))
    figure = similarity_map(MapSimilarityResult(data=data, info=result.info))
    assert "<b>a" not in figure.data[0].customdata[0][0] and "&lt;b&gt;a" in figure.layout.xaxis.ticktext[0]
