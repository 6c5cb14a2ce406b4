"""The table of pooled maps: what single maps average to, and what the command prints."""

from typing import Any

import numpy as np
import pytest

from mmlens.recipes import pooled_table
from mmlens.recipes.interval_coverage import Reference
from mmlens.recipes.pooled_table import main, mean_reference


def test_the_error_of_a_mean_is_that_of_independent_errors() -> None:
    one = Reference(theta=np.array([[1.0]]), half=np.array([[0.3]]))
    other = Reference(theta=np.array([[3.0]]), half=np.array([[0.4]]))
    mean = mean_reference([one, other])
    assert mean.theta.tolist() == [[2.0]] and mean.half[0, 0] == pytest.approx(0.25)


def test_the_command_prints_both_sets_of_prompts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: tuple[Any, ...] = (48, 96)
    monkeypatch.setattr(pooled_table, "MASKS", few)
    main(["--prompts", "2", "--repeats", "1", "--reference", "480"])
    lines = capsys.readouterr().out.strip().split("\n")
    rows = [[one.strip() for one in row.strip("|").split("|")] for row in lines[2:]]
    assert [row[:2] for row in rows] == [
        [prompts, str(n)] for prompts in ("main (2)", "main (1), colour (1)") for n in few
    ]
    assert [row[2] for row in rows] == ["48", "96", "48", "96"]
    for dealt, blocks in (rows[:2], rows[2:]):
        assert float(dealt[3].split()[0]) < float(blocks[3].split()[0]) and float(blocks[3].split()[0]) > 0.99
