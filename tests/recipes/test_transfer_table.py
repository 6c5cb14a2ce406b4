"""Maps and rankings carried elsewhere: correlations against SciPy's, a wrong ranking that loses, and the tables."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmlens.datasets import scenes
from mmlens.model import HookedVLM
from mmlens.recipes import transfer_table
from mmlens.recipes.transfer_table import (
    OWN,
    area_table,
    correlation_table,
    correlations,
    judged,
    maps_of,
    sources,
    transfer_tables,
)
from mmlens.result.paired_leads import RANDOM
from tests.recipes.test_map_claims import cells


def maps(n: int, seed: int, noise: float = 0.3) -> np.ndarray:
    """Maps of 3 × 4 heads around a common one."""
    return np.linspace(-1, 2, 12).reshape(3, 4) + np.random.default_rng(seed).normal(0, noise, (n, 3, 4))


def test_correlations_are_those_of_the_mean_maps() -> None:
    one, other = maps(8, 0), maps(5, 1)
    found = correlations(one, other, n_boot=200)
    means = one.mean(axis=0).ravel(), other.mean(axis=0).ravel()
    assert found["Pearson"][0] == pytest.approx(stats.pearsonr(*means)[0])
    assert found["Spearman"][0] == pytest.approx(stats.spearmanr(*means)[0])
    for value, low, high in found.values():
        assert low <= value <= high <= 1 and low < high


def test_the_same_prompts_are_resampled_together() -> None:
    one = maps(6, 0)
    together, apart = (
        correlations(one, 2 * one, together=flag, n_boot=100)["Pearson"] for flag in (True, False)
    )
    assert together == pytest.approx((1, 1, 1)) and apart[0] == pytest.approx(1) and apart[1] < 0.999
    assert correlations(one, -one, together=True, n_boot=10)["Spearman"] == pytest.approx((-1, -1, -1))


def test_rows_and_columns_of_the_correlations() -> None:
    own = {"a": maps(6, 0), "b": -maps(6, 1)}
    rows = {"same": own, "other": {"a": maps(6, 2), "b": maps(6, 2)}}
    table = cells(correlation_table(own, rows, ["same"], measure="Pearson", n_boot=20, seed=0))
    assert [row[0] for row in table] == ["same", "other"]
    assert table[0][1:] == ["1.00 [1.00, 1.00]"] * 2
    assert float(table[1][1][:4]) > 0.9 and table[1][2].startswith("−0.9")


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    return HookedVLM.from_pretrained("scenes")


def test_the_reverse_of_a_right_ranking_loses(model: HookedVLM) -> None:
    asked = {"colour": scenes.prompts("attribution", 2, family="colour", seed=0)}
    own = maps_of(model, asked, seed=0)
    rows = {"again": own, "reversed": {"colour": -own["colour"]}}
    found = judged(model, own, rows, n_heldout=4, n_random=3, seed=0)
    assert found["colour"].methods == [OWN, "again", "reversed"] and found["colour"].n == 4
    table = cells(area_table(found, n_boot=100, seed=0))
    assert [row[0] for row in table] == [OWN, "again", "reversed", RANDOM]
    assert table[1][1] == f"{table[0][1]}; +0.000 [+0.000, +0.000]"
    area, change = table[2][1].split("; ")
    assert change.startswith("**−") and float(area) < 0.5 < float(table[0][1])


def test_maps_come_from_prompts_apart_from_those_they_are_held_against(
    model: HookedVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_table, "FAMILIES", ("main",))
    seen: list[Any] = []

    def fake(_: Any, prompts: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        seen.append((seed, [np.asarray(one.image).tobytes() for one in prompts["main"]]))
        return {"main": np.full((len(prompts["main"]), 6, 8), float(len(seen)))}

    monkeypatch.setattr(transfer_table, "maps_of", fake)
    own, rows, same = sources(model, {"twin": model}, n_fit=3, seed=5)
    (first, here), (second, there), (third, twin) = seen
    assert len({first, second, third}) == 3 and here == twin and not set(here) & set(there)
    assert own["main"][0, 0, 0] == 1 and same == ["`twin`, same family"]
    assert {name: by["main"][0, 0, 0] for name, by in rows.items()} == {"main, other prompts": 2, same[0]: 3}


def test_three_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_table, "FAMILIES", ("colour",))
    text = transfer_tables("scenes", ("scenes-random",), n_fit=2, n_heldout=3, n_random=2, n_boot=20)
    assert text.count("| --- |") == 3 and "Pearson" in text and "Spearman" in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    names = ["colour, other prompts", "`scenes-random`, same family"]
    assert [[row[0] for row in cells(one)] for one in tables] == [names, names, [OWN, *names, RANDOM]]
