"""Interactions: pairs by name, largest first whatever the sign, saving, joining, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from mmlens.errors import ResultError
from mmlens.result import InteractionResult, Result
from mmlens.sweeps.join import join
from tests.result.examples import interactions, run_info


def test_pairs_are_their_heads() -> None:
    result = interactions()
    assert result.pairs == (((2, 1), (3, 4)), ((2, 1), (4, 6)), ((3, 4), (4, 6)))
    assert result.labels == ["L2H1, L3H4", "L2H1, L4H6", "L3H4, L4H6"]


def test_the_largest_come_first_whatever_their_sign() -> None:
    table = interactions().top(2)
    assert table.iloc[:, :4].to_numpy().tolist() == [[2, 1, 3, 4], [3, 4, 4, 6]]
    np.testing.assert_allclose(table["interaction"], [-2.0, 0.7])
    assert (np.diff(table[["lower", "interaction", "upper"]].to_numpy()) > 0).all()
    one = interactions().top(1, sample=0).iloc[0]
    np.testing.assert_allclose(one[["interaction", "lower", "upper"]].tolist(), [-2.1, -2.3, -1.8])


def test_the_interval_of_several_is_that_of_their_mean() -> None:
    view = interactions().summary()
    assert "mean over 3 samples" in view.attrs["interval"]
    assert "over masks" in interactions().summary(1).attrs["interval"]


def test_the_table_names_the_heads_of_every_row() -> None:
    result = interactions()
    table = result.to_pandas()
    assert list(table.columns)[:6] == [
        "sample",
        "pair",
        "first_layer",
        "first_head",
        "second_layer",
        "second_head",
    ]
    assert len(table) == 9
    for row in table.to_dict("records"):
        place = (row["first_layer"], row["first_head"]), (row["second_layer"], row["second_head"])
        k = result.pairs.index(place)
        assert row["interaction"] == float(result.interaction.sel(sample=row["sample"])[k])
        assert row["lower"] == float(result.interval.sel(sample=row["sample"], bound="lower")[k])


def test_saved_and_loaded_and_selected(tmp_path: Path) -> None:
    result = interactions()
    again = Result.load(result.save(tmp_path / "pairs.mmlens"))
    assert isinstance(again, InteractionResult) and again.data.identical(result.data)
    assert again.info == result.info and again.pairs == result.pairs
    part = again.select([2, 0])
    assert part.pairs == result.pairs and part.n == 2


def test_samples_of_their_own_are_joined() -> None:
    whole = interactions()
    joined = join([whole.select(i) for i in range(3)], ["0", "1", "2"])
    assert isinstance(joined, InteractionResult) and joined.data.identical(whole.data)


def test_the_headline_says_what_the_strongest_pair_does() -> None:
    assert "L2H1 and L3H4 stand in for each other most (-2 logit" in interactions().headline()
    data = interactions().data.assign(
        interaction=-interactions().interaction, interval=interactions().interval * 0
    )
    assert "need each other most (+2" in InteractionResult(data=data, info=run_info()).headline()


def test_what_is_refused() -> None:
    data, info = interactions().data, run_info()
    with pytest.raises(ResultError, match="needs the coordinate first_head"):
        InteractionResult(data=data.drop_vars("first_head"), info=info)
    with pytest.raises(ResultError, match="paired with itself"):
        same = data.assign_coords(second_layer=data["first_layer"], second_head=data["first_head"])
        InteractionResult(data=same, info=info)
    with pytest.raises(ResultError, match="lower end above"):
        InteractionResult(data=data.assign(interval=-data["interval"]), info=info)
