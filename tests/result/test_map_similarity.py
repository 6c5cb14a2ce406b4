"""Map similarities: what contradicts itself is refused; pairs, the diagonal and the headline."""

import numpy as np
import pytest
import xarray as xr

from mmlens.errors import ResultError
from mmlens.result import MapSimilarityResult
from tests.result.examples import map_similarity


def changed(**variables: object) -> MapSimilarityResult:
    result = map_similarity()
    return MapSimilarityResult(data=result.data.assign(variables), info=result.info)


def test_pairs_carry_their_cosines() -> None:
    table = map_similarity().summary()
    assert list(zip(table["first"], table["second"], strict=True)) == [
        ("object", "colour"),
        ("object", "count"),
        ("colour", "count"),
    ]
    assert table["within_first"].tolist() == [0.9, 0.9, 0.8]
    assert table["within_second"].tolist() == [0.8, 0.7, 0.7]
    assert table["between"].tolist() == [0.3, 0.2, 0.5]
    assert table["gap"].tolist() == pytest.approx([0.55, 0.6, 0.25])
    assert table["upper"].tolist() == pytest.approx([0.65, 0.7, 0.35])


def test_within_is_the_diagonal() -> None:
    within = map_similarity().within
    assert within.to_series().to_dict() == {"object": 0.9, "colour": 0.8, "count": 0.7}
    assert within.attrs["unit"] == "1"


def test_the_headline_names_the_pair_least_apart() -> None:
    assert map_similarity().headline() == (
        "cosine of maps 0.80 within 3 group(s), 0.33 between; smallest gap colour and count: +0.25 (p = 0.001)"
    )


def test_the_table_is_long_with_intervals() -> None:
    table = map_similarity().to_pandas()
    assert list(table.columns) == ["group", "group_other", "cosine", "lower", "upper"] and len(table) == 9


def test_nothing_is_undefined() -> None:
    numbers = [array for array in map_similarity().data.data_vars.values() if array.dtype.kind == "f"]
    assert len(numbers) == 5 and all(np.isfinite(array.values).all() for array in numbers)


def test_one_group_stands_alone() -> None:
    assert map_similarity(np.array([[0.4]])).headline() == "cosine of maps 0.40 within 1 group(s)"


@pytest.mark.parametrize(
    ("cosine", "message"),
    [([[0.9, 0.3], [0.2, 0.8]], "symmetric"), ([[0.9, 1.2], [1.2, 0.8]], "symmetric and lie in")],
)
def test_what_is_no_cosine_is_refused(cosine: list[list[float]], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        map_similarity(np.array(cosine))


def test_contradictions_are_refused() -> None:
    data = map_similarity().data
    with pytest.raises(ResultError, match="not the mean cosine within"):
        changed(gap=data["gap"] + 0.01)
    with pytest.raises(ResultError, match="p-values must lie above 0"):
        changed(p_value=data["p_value"] * 0)
    with pytest.raises(ResultError, match="two samples or more"):
        changed(n=data["n"] * 0 + 1)
    with pytest.raises(ResultError, match="name every two groups once"):
        changed(first=data["second"], second=data["first"])
    with pytest.raises(ResultError, match="must have the same labels"):
        changed(group_other=xr.DataArray(data["group"].values[::-1], dims="group_other"))
