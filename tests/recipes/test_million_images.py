"""The arithmetic of a million images: its formulas by hand, and the page against what the command prints."""

import re
from dataclasses import replace

import pytest

from mmlens.errors import ConfigError
from mmlens.recipes import million_images
from mmlens.recipes.million_images import Costs, Plan, config_of, in_blocks, masks_needed, tower_work, ways
from mmlens.recipes.unit_storage import Member, Unit, enlarged
from tests.architecture import ROOT

NUMBER = re.compile(r"[\d,]*\.?\d+")


def test_masks_needed_by_hand() -> None:
    assert masks_needed(1024, 0.95, 0.8) == pytest.approx(1024 * (1 + 0.25 * 0.9025 / 0.0975))
    assert masks_needed(48, 0.99, 1.0) == 48  # a linear metric needs as many masks as heads
    plain, paired = (masks_needed(100, 0.9, 0.5, excess) for excess in (1.0, 0.5))
    assert paired - 100 == pytest.approx((plain - 100) / 2)
    assert in_blocks(2049, 1024) == 4096 and in_blocks(2048, 1024) == 2048


def test_work_of_a_known_model() -> None:
    """12.95 GFLOP per token in LLaVA-1.5-7B's layers; CLIP-L/14 at 336 pixels: 0.36 TFLOP in 23 layers."""
    costs, plan = Costs.of(Plan()), Plan()
    per_token = 32 * 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    n_pos = plan.system + 576 + plan.suffix
    assert per_token == pytest.approx(12.95e9, rel=1e-3)
    assert per_token * n_pos < costs.forward < 1.06 * per_token * n_pos
    assert 0.95 * per_token * plan.suffix < costs.mask < 1.03 * per_token * plan.suffix
    layers = 23 * (2 * 577 * 12 * 1024**2 + 4 * 577**2 * 1024)
    assert layers < tower_work(config_of(plan)) < 1.1 * layers


def test_what_is_assumed_changes_the_result() -> None:
    plan = Plan()
    usual = ways(plan)
    for way, (n_masks, flop) in usual.items():
        assert n_masks > 0 and 0 < flop <= usual[next(iter(usual))][1], way
    worse = ways(replace(plan, r2=0.5))
    first, second, *_ = usual
    assert worse[first][0] > usual[first][0] and usual[first][0] == usual[second][0]
    assert ways(replace(plan, suffix=90))[second][1] == pytest.approx(2 * usual[second][1], rel=0.05)


def test_a_unit_grows_with_its_axes() -> None:
    members = (
        Member(dims={"sample": 1, "layer": 6, "head": 8}, n_bytes=480.0),
        Member(dims={"sample": 1, "row": 8, "col": 8}, n_bytes=64.0),
        Member(dims={"sample": 1}, n_bytes=10.0),
    )
    small = Unit(members=members, rest=100.0, line=70)
    large = enlarged(small, config_of(Plan()), n_pos=600, grid=24)
    assert large.parts["coefficients and intervals"] == pytest.approx(480 * 1024 / 48)
    assert large.parts["cells"] == 64 * 9 and large.parts["everything else"] == 110
    assert small.n_bytes == 654 and large.line == 70


def test_no_tower_that_the_formula_knows() -> None:
    with pytest.raises(ConfigError, match="CLIP tower"):
        ways(Plan(model="Qwen2.5-VL-7B"))


def test_the_command_takes_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    million_images.main(["--images", "5000", "--r2", "0.5"])
    printed = capsys.readouterr().out
    assert "| 5,000 |" in printed and "GPU-hours for 5,000" in printed and "| 0.5 | `--r2` |" in printed


def test_the_page_shows_what_the_command_prints() -> None:
    """Word by word, and every figure within one in a hundred: how far a file compresses differs by platform."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    shown = page.split("<!-- begin: mmlens.recipes.million_images -->")[1].split("<!-- end")[0].strip()
    printed = million_images.report(Plan())
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", printed)
    figures = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (shown, printed)]
    assert figures[0] == pytest.approx(figures[1], rel=0.01, abs=0.11)
