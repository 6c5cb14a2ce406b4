"""Cosines by hand, planted groups that differ, groups that do not, resampling against plain loops, every error."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from mmlens.analyses import map_similarity
from mmlens.analyses.map_similarity import _gap_of, _mean_cosines, _multiplicities
from mmlens.errors import ConfigError, DesignError, NonFiniteError, ShapeError
from mmlens.result import AttributionResult, HeadScoreResult, MapSimilarityResult
from tests.result.examples import attribution, attribution_data, head_score, run_info

ROOT_HALF = 0.5**0.5


def maps(*rows: list[float]) -> np.ndarray:
    """Maps of 2 × 2 heads, one a row."""
    return np.array(rows, dtype=float).reshape(-1, 2, 2)


def drawn(n: int, centre: Any, noise: float, seed: int) -> np.ndarray:
    """Maps of 3 × 4 heads scattered around a centre."""
    return np.asarray(centre) + np.random.default_rng(seed).normal(0, noise, (n, 3, 4))


def peak(layer: int, head: int) -> np.ndarray:
    found = np.zeros((3, 4))
    found[layer, head] = 1.0
    return found


def test_cosines_and_gap_by_hand() -> None:
    a = maps([1, 0, 0, 0], [0, 2, 0, 0], [3, 3, 0, 0])  # cosines 0, 1/√2, 1/√2
    b = maps([0, 1, 0, 0], [0, -5, 0, 0])  # cosine −1; with a: 0, ±1, ±1/√2, which cancel
    result = map_similarity({"a": a, "b": b}, n_boot=10, n_permutations=10)
    within = 2 * ROOT_HALF / 3
    np.testing.assert_allclose(result.data["cosine"].values, [[within, 0], [0, -1]], atol=1e-12)
    assert result.data["gap"].values == pytest.approx([(within - 1) / 2])
    assert result.data["n"].values.tolist() == [3, 2]
    assert (result.data["first"].item(), result.data["second"].item()) == ("a", "b")
    assert result.within.values == pytest.approx([within, -1])


def test_the_scale_of_a_map_does_not_matter_and_its_sign_does() -> None:
    a, b = drawn(4, peak(0, 1), 0.5, 0), drawn(5, peak(2, 2), 0.5, 1)
    plain = map_similarity({"a": a, "b": b}, n_boot=50, n_permutations=50).data
    scales = np.array([1e-200, 1e200, 3.0, 1.0])[:, None, None]
    scaled = map_similarity({"a": a * scales, "b": b}, n_boot=50, n_permutations=50).data
    for name in ("cosine", "cosine_interval", "gap", "p_value"):
        np.testing.assert_allclose(scaled[name].values, plain[name].values, atol=1e-12)
    flipped = map_similarity({"a": -a, "b": b}, n_boot=1, n_permutations=1).data["cosine"].values
    signs = np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(flipped, plain["cosine"].values * signs, atol=1e-12)


def test_results_arrays_and_tensors_are_the_same_maps() -> None:
    trained, control = attribution(4), attribution(3, random=True)
    expected = map_similarity({"a": trained, "b": control}, n_boot=30, n_permutations=30)
    for other in (
        {"a": trained.theta, "b": control.theta},
        {"a": trained.theta.values, "b": torch.from_numpy(control.theta.values)},
        {"a": trained.theta.transpose("head", "sample", "layer"), "b": control.theta},
    ):
        found = map_similarity(other, n_boot=30, n_permutations=30)
        assert found.data.drop_attrs().identical(expected.data.drop_attrs())
    assert expected.data.attrs["score"] == "head attribution of the logit difference"
    assert map_similarity({"x": head_score()}, n_boot=1).data.attrs["score"] == "attention weight"
    both = map_similarity({"x": head_score(), "y": head_score().score.values}, n_boot=1)
    assert both.data.attrs["score"] == "attention weight, given scores"


# --- planted truth, and its absence


def test_planted_groups_are_told_apart() -> None:
    """Noise of 0.1 in 12 heads: expected cosine within 1 / (1 + 12 · 0.01), between 0."""
    found = map_similarity(
        {"a": drawn(12, peak(0, 1), 0.1, 0), "b": drawn(9, peak(2, 2), 0.1, 1)}, n_permutations=500
    )
    assert found.within.values == pytest.approx([1 / 1.12] * 2, abs=0.04)
    assert float(found.data["cosine"][0, 1]) == pytest.approx(0, abs=0.1)
    lower, upper = found.data["gap_interval"].values[0]
    assert 0.5 < lower < found.data["gap"].item() < upper < 1.1
    assert found.data["p_value"].item() == pytest.approx(1 / 501)
    assert "smallest gap a and b" in found.headline()


def test_identical_distributions_are_not_told_apart() -> None:
    """Over 120 repetitions, p-values are uniform enough and the intervals hold 0 about as often as they say."""
    p_values, covered = [], []
    for seed in range(120):
        groups = {name: drawn(10, peak(1, 1), 0.4, 2 * seed + i) for i, name in enumerate("ab")}
        data = map_similarity(groups, n_boot=100, n_permutations=99, seed=seed).data
        p_values.append(data["p_value"].item())
        covered.append(float(data["gap_interval"][0, 0]) <= 0 <= float(data["gap_interval"][0, 1]))
    assert 0.0 <= np.mean(np.array(p_values) <= 0.05) <= 0.11
    assert 0.35 <= np.mean(np.array(p_values) <= 0.5) <= 0.65
    assert np.mean(covered) >= 0.88


def test_pairs_are_tested_one_by_one() -> None:
    """Two groups from one distribution, a third apart from both."""
    groups = {
        "a": drawn(10, peak(0, 0), 0.3, 1),
        "same": drawn(10, peak(0, 0), 0.3, 2),
        "other": drawn(10, peak(2, 3), 0.3, 3),
    }
    table = map_similarity(groups).summary().set_index(["first", "second"])
    assert list(table.index) == [("a", "same"), ("a", "other"), ("same", "other")]
    assert table["p_value"].iloc[0] > 0.05 and (table["p_value"].iloc[1:] < 0.005).all()
    assert table["lower"].iloc[0] < 0 < table["upper"].iloc[0] and (table["lower"].iloc[1:] > 0.2).all()


# --- resampling


def test_copies_of_a_sample_make_no_pair() -> None:
    """Maps at right angles have cosine 0 in every draw; counted copies would lift it above 0."""
    result = map_similarity({"a": np.eye(12).reshape(12, 3, 4)}, n_boot=200)
    assert result.data["cosine_interval"].values.ravel() == pytest.approx([0, 0], abs=1e-12)


def test_weighted_means_are_those_of_plain_loops() -> None:
    units = [one.reshape(len(one), -1) for one in (drawn(4, 0, 1, 0), drawn(3, 0, 1, 1))]
    units = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in units]
    weights = [_multiplicities(len(one), 25, 5, i) for i, one in enumerate(units)]
    found = _mean_cosines(units, weights)
    for draw in range(25):
        index = [np.repeat(np.arange(len(w[draw])), w[draw].astype(int)) for w in weights]
        assert [len(one) for one in index] == [4, 3] and all(len(set(one)) > 1 for one in index)
        for i, unit in enumerate(units):
            pairs = [unit[a] @ unit[b] for a, b in combinations(index[i], 2) if a != b]
            assert found[draw, i, i] == pytest.approx(np.mean(pairs))
        between = [units[0][a] @ units[1][b] for a in index[0] for b in index[1]]
        assert found[draw, 0, 1] == pytest.approx(np.mean(between)) == pytest.approx(found[draw, 1, 0])


def test_draws_of_groups_are_independent() -> None:
    """Equal draws of equally large groups would make their cosines vary together."""
    draws = [_multiplicities(6, 400, 5, group) for group in range(2)]
    together = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*draws, strict=True) if a.std() * b.std()])
    assert abs(together) < 0.1


def test_the_interval_is_that_of_the_spread_over_repetitions() -> None:
    """The width of the interval of a cosine between groups matches how it varies from sample to sample."""
    values, widths = [], []
    for seed in range(60):
        groups = {name: drawn(15, peak(0, i), 0.5, 2 * seed + i) for i, name in enumerate("ab")}
        data = map_similarity(groups, n_boot=200, n_permutations=1, seed=seed).data
        values.append(float(data["cosine"][0, 0]))
        widths.append(float(np.ptp(data["cosine_interval"].values[0, 0])))
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.35)


def test_the_p_value_is_that_of_all_relabellings() -> None:
    a, b = drawn(3, peak(0, 0), 0.5, 0), drawn(4, peak(0, 1), 0.5, 3)
    rows = np.concatenate([a, b]).reshape(7, -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gram = rows @ rows.T

    def gap(first: tuple[int, ...]) -> float:
        second = [i for i in range(7) if i not in first]
        inside = [np.mean([gram[i, j] for i, j in combinations(part, 2)]) for part in (first, second)]
        return float(np.mean(inside) - np.mean([gram[i, j] for i in first for j in second]))

    every = [gap(first) for first in combinations(range(7), 3)]
    inside = np.array([np.isin(range(7), first) for first in combinations(range(7), 3)])
    np.testing.assert_allclose(_gap_of(gram, inside), every)
    exact = np.mean([one >= gap((0, 1, 2)) - 1e-12 for one in every])
    found = map_similarity({"a": a, "b": b}, n_boot=1, n_permutations=4000).data
    assert found["gap"].item() == pytest.approx(gap((0, 1, 2)))
    assert 0.05 < exact < 0.9
    assert found["p_value"].item() == pytest.approx(exact, abs=0.03)


def test_equal_maps_are_no_evidence() -> None:
    same = np.ones((5, 2, 3))
    data = map_similarity({"a": same, "b": 2 * same}, n_permutations=50).data
    assert data["cosine"].values == pytest.approx(np.ones((2, 2)))
    assert data["gap"].item() == pytest.approx(0, abs=1e-12)
    assert data["p_value"].item() == 1.0


def test_two_samples_say_nothing_of_how_sure_they_are() -> None:
    groups = {"two": drawn(2, peak(0, 0), 0.1, 0), "five": drawn(5, peak(1, 1), 0.1, 1)}
    data = map_similarity(groups, n_boot=50, n_permutations=50).data
    ends = data["cosine_interval"]
    for one in (ends.sel(group="two"), ends.sel(group_other="two")):
        assert one.values.tolist() == [[-1, 1], [-1, 1]]
    own = ends.sel(group="five", group_other="five").values
    assert 0.5 < own[0] < own[1] < 1
    assert data["gap_interval"].values.tolist() == [[-2, 2]]


def test_the_seed_decides_and_another_group_changes_nothing() -> None:
    groups = {name: drawn(6, peak(i, i), 0.8, i) for i, name in enumerate("abc")}
    two = {name: groups[name] for name in "ab"}
    once, again, more = (map_similarity(one, n_boot=100, n_permutations=100) for one in (two, two, groups))
    assert once.data.identical(again.data)
    part = more.data.isel(group=slice(2), group_other=slice(2), pair=slice(1))
    for name in once.data.data_vars:
        np.testing.assert_array_equal(part[name].values, once.data[name].values)
    other = map_similarity(two, n_boot=100, n_permutations=100, seed=1).data
    assert other["cosine"].equals(once.data["cosine"])
    assert not other["cosine_interval"].equals(once.data["cosine_interval"])


def test_one_group_has_no_pair(tmp_path: Path) -> None:
    result = map_similarity({"only": attribution(3)}, n_boot=20)
    assert result.data.sizes["pair"] == 0 and result.summary().empty
    assert result.headline() == f"cosine of maps {float(result.within[0]):.2f} within 1 group(s)"
    back = MapSimilarityResult.load(result.save(tmp_path / "r.mmlens"))
    assert back.data.identical(result.data)
    result.plot()


def test_provenance_is_that_of_the_results() -> None:
    one, other = attribution(2), attribution(3, random=True)
    info = map_similarity({"a": one, "b": other, "c": other.theta.values}, n_boot=2, seed=9).info
    assert info.model_id == "scenes, random weights, unknown" and info.seed == 9
    assert info.settings == {"n_boot": 2, "n_permutations": 1000, "groups": ["a", "b", "c"]}
    assert info.prompts == one.info.prompts + other.info.prompts
    assert map_similarity({"a": one}, n_boot=2).info.model_id == "scenes"


# --- what must fail


def scored(values: np.ndarray) -> HeadScoreResult:
    labels = np.array([f"scene-{i}" for i in range(len(values))], dtype=object)
    attrs = {"method": "m", "unit": "1", "sign": "s"}
    data = xr.Dataset(
        {"score": (("sample", "layer", "head"), values)}, coords={"sample": labels}, attrs=attrs
    )
    return HeadScoreResult(data=data, info=run_info())


def test_zero_maps_are_named() -> None:
    values = drawn(4, 1, 0.1, 0)
    values[2:] = 0
    with pytest.raises(DesignError, match=r"sample 2 of 'b' is zero everywhere \(2 of 4 are\)"):
        map_similarity({"a": drawn(3, 1, 0.1, 1), "b": values})
    with pytest.raises(DesignError, match="sample scene-2 of 'b' is zero"):
        map_similarity({"b": scored(values)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(bad: float) -> None:
    values = drawn(3, 1, 0.1, 0)
    values[1, 2, 3] = bad
    with pytest.raises(NonFiniteError, match=r"sample 1 of 'a' holds NaN or infinity .*layer 2, head 3"):
        map_similarity({"a": values})


def test_maps_of_other_models_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"maps of 'b' have \[layer, head\] = \[4, 3\], those of 'a' \[3, 4\]"
    ):
        map_similarity({"a": drawn(3, 1, 0.1, 0), "b": drawn(3, 1, 0.1, 1).reshape(3, 4, 3)})


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 1), (3, 0, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"maps of 'a' have shape .*expected \[sample, layer, head\]"):
        map_similarity({"a": np.ones(shape)})


def test_too_little_to_compare() -> None:
    with pytest.raises(DesignError, match="no group was given"):
        map_similarity({})
    with pytest.raises(DesignError, match=r"'b' has 1 sample\(s\); at least two"):
        map_similarity({"a": attribution(2), "b": attribution(2).select(0)})
    with pytest.raises(DesignError, match=r"'b' has 0 sample\(s\)"):
        map_similarity({"b": np.ones((0, 2, 2))})


@pytest.mark.parametrize("options", [{"n_boot": 0}, {"n_permutations": 0}])
def test_no_draws_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1, better 1000"):
        map_similarity({"a": drawn(3, 1, 0.1, 0)}, **options)


def test_undrawn_attributions_compare_too() -> None:
    """Results without images or questions."""
    result = AttributionResult(data=attribution_data(3), info=run_info())
    assert map_similarity({"a": result}, n_boot=5).groups == ["a"]
