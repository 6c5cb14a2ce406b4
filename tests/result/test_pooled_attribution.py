"""A map that prompts share: its summary, the prompts it fits worst, saving, and no maps of single samples."""

from pathlib import Path

import numpy as np
import pytest

from mmlens.errors import ResultError, SweepError
from mmlens.result import PooledAttributionResult, Result
from mmlens.sweeps.join import join
from tests.result.examples import attribution, pooled_attribution


def test_the_summary_is_theta_with_its_own_interval() -> None:
    result = pooled_attribution()
    view = result.summary()
    np.testing.assert_array_equal(view["theta"], result.theta)
    np.testing.assert_array_equal(view["lower"], result.interval.sel(bound="lower"))
    np.testing.assert_array_equal(view["upper"], result.interval.sel(bound="upper"))
    assert "for these prompts" in view.attrs["interval"]
    with pytest.raises(ResultError, match="one theta for all its samples"):
        result.summary(1)


def test_top_heads_and_the_long_table() -> None:
    table = pooled_attribution().top(3)
    assert list(table.columns) == ["layer", "head", "theta", "lower", "upper"]
    assert table[["layer", "head"]].values.tolist() == [[3, 1], [2, 2], [4, 0]]
    long = pooled_attribution().to_pandas()
    assert list(long.columns) == ["layer", "head", "theta", "lower", "upper"] and len(long) == 24


def test_prompts_are_listed_worst_first() -> None:
    result = pooled_attribution()
    table = result.per_prompt()
    assert table["r2"].is_monotonic_increasing and len(table) == result.n == 3
    row = table.iloc[0]
    worst = int(result.r2.values.argmin())
    assert row["sample"] == str(worst) and row["slope"] == result.data["slope"].values[worst]


def test_saved_and_loaded(tmp_path: Path) -> None:
    result = pooled_attribution()
    again = Result.load(result.save(tmp_path / "pooled.mmlens"))
    assert isinstance(again, PooledAttributionResult)
    assert again.data.identical(result.data) and again.info == result.info


def test_single_samples_are_not_to_be_had() -> None:
    with pytest.raises(ResultError, match="cannot be selected"):
        pooled_attribution().select(0)
    other = attribution().data["theta"].isel(sample=0, drop=True)
    changed = PooledAttributionResult(
        data=pooled_attribution().data.assign(theta=other), info=pooled_attribution().info
    )
    with pytest.raises(SweepError, match="differs between samples and has no sample axis"):
        join([pooled_attribution(), changed], ["0", "1"])


def test_the_headline_says_what_it_cost_and_the_worst_prompt() -> None:
    result = pooled_attribution()
    text = result.headline()
    worst = f"worst {float(result.r2.min()):.2f}"
    for part in ("one map for 3 prompts", worst, "split-half r 0.90", "1536 masks in 12.3 s", "L3H1"):
        assert part in text
    assert result.seconds == 12.34 and result.masks_per_second is None  # the example does not say its runs


def test_swapped_bounds_are_refused() -> None:
    result = pooled_attribution()
    with pytest.raises(ResultError, match="lower end above"):
        PooledAttributionResult(data=result.data.assign(interval=-result.data["interval"]), info=result.info)
