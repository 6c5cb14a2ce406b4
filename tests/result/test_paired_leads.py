"""Leads by hand, intervals that pairing decides, coverage on made-up prompts, every error."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mmlens.errors import ConfigError, ResultError
from mmlens.result import FaithfulnessResult
from mmlens.result.paired_leads import RANDOM, paired_leads
from tests.result.examples import run_info

SIZES = np.array([0, 1, 2, 3, 4])


def result(
    shares: dict[str, Any], *, effect: Any = None, random: Any = None, curve: str = "faithfulness"
) -> FaithfulnessResult:
    """Curves [sample, size] by method; both curves are the same."""
    curves = np.stack([np.asarray(one, float) for one in shares.values()])
    n = curves.shape[1]
    areas = np.trapezoid(curves, SIZES / SIZES[-1], axis=-1)
    data = xr.Dataset(
        {
            **{name: (("method", "sample", "size"), curves) for name in ("faithfulness", "completeness")},
            **{name: (("method", "sample"), areas) for name in ("auc_faithfulness", "auc_completeness")},
            "k80": ("method", np.full(len(curves), np.nan)),
            "k90": ("method", np.full(len(curves), np.nan)),
        },
        coords={"method": list(shares), "size": SIZES, "sample": [str(i) for i in range(n)]},
        attrs={"metric": "logit", "unit": "logit", "baseline": "mean_image_tokens"},
    )
    if effect is not False:
        effects = np.ones(n) if effect is None else np.asarray(effect, float)
        data["effect"] = ("sample", effects, {"description": "clean minus ablated"})
    if random is not None:
        data[f"random_{curve}"] = (("draw", "sample", "size"), np.asarray(random, float))
    return FaithfulnessResult(data=data, info=run_info())


def leads(given: FaithfulnessResult, **options: Any) -> dict[str, dict[str, Any]]:
    """Rows of the table by method."""
    return {row["method"]: row for row in paired_leads(given, **options).to_dict("records")}


def steps(*reach: int) -> np.ndarray:
    """One curve a prompt, 0 up to a size and 1 from it on."""
    return np.stack([(size <= SIZES).astype(float) for size in reach])


def test_areas_and_numbers_of_heads_by_hand() -> None:
    given = result({"one": steps(1, 1, 1), "two": steps(3, 3, 3)})
    table = leads(given, n_boot=20)
    assert table["one"] | {"lower": 0.0, "upper": 0.0} == table["one"]
    assert (table["one"]["value"], table["one"]["lead"], table["one"]["decided"]) == (0.875, 0.0, False)
    assert [table["two"][name] for name in ("value", "lead", "lower", "upper")] == [0.375, 0.5, 0.5, 0.5]
    assert table["two"]["decided"] is True
    heads = leads(given, quantity="k80", n_boot=20)
    assert [row["value"] for row in heads.values()] == [1.0, 3.0] and heads["two"]["lead"] == 2.0
    turned = leads(given, first="two", quantity="k90", n_boot=20)
    assert list(turned) == ["two", "one"] and [row["lead"] for row in turned.values()] == [0.0, -2.0]


def test_values_are_ratios_of_sums() -> None:
    effect = np.array([3.0, 1.0])
    own = steps(1, 3)  # of the prompts' own effects
    shares = own * effect[:, None] / effect.mean()
    table = leads(result({"a": shares, "b": shares}, effect=effect), n_boot=50)
    assert table["a"]["value"] == pytest.approx((3 * 0.875 + 1 * 0.375) / 4)
    same = {"lead": 0.0, "lower": 0.0, "upper": 0.0, "decided": False}
    assert table["b"] == table["b"] | same


def test_a_draw_is_the_ratio_of_its_own_prompts() -> None:
    effect = np.array([3.0, 1.0])
    shares = steps(1, 3) * effect[:, None] / effect.mean()
    given = result({"zero": np.zeros((2, 5)), "a": shares}, effect=effect)
    row = leads(given, n_boot=400, seed=3)["a"]
    assert row["lower"] == pytest.approx(-0.875) and row["upper"] == pytest.approx(-0.375)


def test_pairing_decides_what_single_intervals_leave_open() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0.5, 0.2, (30, 1)) * np.ones(5)
    better = hard + 0.02 + rng.normal(0, 0.01, (30, 1))
    row = leads(result({"better": better, "worse": hard}), n_boot=500)["worse"]
    single = 1.96 * hard[:, 0].std() / np.sqrt(30)
    assert single > 0.05 and row["lead"] == pytest.approx(0.02, abs=0.005)
    assert row["decided"] and row["lower"] > 0


def test_intervals_cover_as_often_as_they_say() -> None:
    """Over 200 sets of 30 prompts whose true lead is 0.1; .95 ± three standard errors, less what 30 prompts cost."""
    rng, hits = np.random.default_rng(1), 0
    for seed in range(200):
        base = rng.normal(0.4, 0.3, (30, 1)) * np.ones(5)
        lead = 0.1 + rng.normal(0, 0.2, (30, 1)) * np.ones(5)
        row = leads(result({"a": base + lead, "b": base}), n_boot=200, seed=seed)["b"]
        hits += row["lower"] <= 0.1 <= row["upper"]
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("curve", ["faithfulness", "completeness"])
def test_chance_is_the_median_of_the_random_rankings(curve: str) -> None:
    random = np.stack([steps(2, 2), steps(3, 3), steps(3, 3), steps(4, 4), steps(4, 4)])
    given = result({"one": steps(1, 1)}, random=random, curve=curve)
    row = leads(given, curve=curve, quantity="k80", n_boot=300)[RANDOM]
    assert row["value"] == 3.0 and row["lead"] == 2.0
    assert row["lower"] >= 1.0 and row["upper"] == 3.0  # rankings are drawn anew, too
    two = result({"one": steps(1, 1)}, random=np.stack([steps(1, 1), steps(4, 4)]), curve=curve)
    for seed in range(8):  # as observed, each ranking counts once
        assert leads(two, curve=curve, quantity="k80", n_boot=5, seed=seed)[RANDOM]["value"] == 2.5


def test_a_threshold_that_is_never_reached_is_infinite() -> None:
    given = result({"one": steps(1, 1), "never": np.zeros((2, 5)), "nor": np.zeros((2, 5))})
    row = leads(given, quantity="k80", n_boot=10)["never"]
    assert row["lead"] == np.inf and row["decided"]
    turned = leads(given, first="nor", quantity="k80", n_boot=10)
    assert [one["lead"] for one in turned.values()] == [0, -np.inf, 0]


def test_draws_follow_the_seed() -> None:
    rng = np.random.default_rng(0)
    given = result({"a": rng.random((9, 5)), "b": rng.random((9, 5))}, random=rng.random((4, 9, 5)))
    one, two, three = (paired_leads(given, n_boot=50, seed=seed) for seed in (0, 0, 1))
    assert one.equals(two) and not one.equals(three)


# --- what must fail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": "roc"}, "curve='roc'"),
        ({"quantity": "k70"}, "quantity='k70'"),
        ({"n_boot": 0}, "n_boot=0"),
    ],
)
def test_unknown_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paired_leads(result({"one": steps(1, 1)}), **options)


def test_an_unknown_method() -> None:
    with pytest.raises(ResultError, match="'two'; there are one"):
        paired_leads(result({"one": steps(1, 1)}), first="two")


def test_one_prompt_or_no_effects() -> None:
    with pytest.raises(ResultError, match=r"1 prompt\(s\)"):
        paired_leads(result({"one": steps(1)}))
    with pytest.raises(ResultError, match="no variable effect"):
        paired_leads(result({"one": steps(1, 1)}, effect=False))


def test_effects_that_change_sign_under_resampling() -> None:
    with pytest.raises(ResultError, match="does not reliably help"):
        paired_leads(result({"one": steps(1, 1, 1)}, effect=[5.0, -1.0, -1.0]))


def test_saved_results_serve(tmp_path: Any) -> None:
    given = result({"one": steps(1, 2), "two": steps(2, 2)})
    given.save(tmp_path / "a.mmlens")
    again = FaithfulnessResult.load(tmp_path / "a.mmlens")
    assert paired_leads(replace(again), n_boot=50).equals(paired_leads(given, n_boot=50))
