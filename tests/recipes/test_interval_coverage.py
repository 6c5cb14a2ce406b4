"""Coverage: what counts as held, exact references, cells of the table, and what the command prints."""

from typing import Any

import numpy as np
import pytest

from mmlens.pretrained import path
from mmlens.recipes import interval_coverage
from mmlens.recipes.interval_coverage import Reference, cell, held, main, planted_references
from mmlens.recipes.planted_truth import TRUTH
from mmlens.result import PlantedTruth


def test_held_by_hand() -> None:
    interval = np.array([[[-1.0, -1.0, -3.0]], [[1.0, 1.0, 5.0]]])  # halves 1, 1, 4
    theta, half = np.array([[1.2, 1.5, 5.9]]), np.array([[0.75, 0.75, 3.0]])  # together 1.25, 1.25, 5
    counted, plain = held(interval, Reference(theta=theta, half=half))
    assert counted.tolist() == [[1.0, 0.0, 1.0]] and plain.tolist() == [[0.0, 0.0, 0.0]]
    exact = held(interval, Reference(theta=np.array([[1.0, -0.9, 6.0]]), half=np.zeros((1, 3))))
    assert exact.tolist() == [[[1.0, 1.0, 0.0]]] * 2


def test_planted_references_are_exact_banzhaf_values() -> None:
    truth = PlantedTruth.load(path("planted-redundant") / TRUTH).first(2)
    found = planted_references("main", 2)
    values = truth.player_values("main", index="banzhaf").values
    for one, expected in zip(found, values, strict=True):
        assert np.count_nonzero(one.theta) == len(truth.players) and not one.half.any()
        np.testing.assert_array_equal([one.theta[place] for place in truth.players], expected)


def test_a_cell_is_a_mean_over_prompts_with_its_interval() -> None:
    assert cell([0.9, 0.9]) == "0.900 [0.900, 0.900]"
    mean, bounds = cell([0.8, 1.0]).split(" ", 1)
    assert mean == "0.900" and bounds == "[0.800, 1.000]"


def test_the_command_prints_two_tables_whose_intervals_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: Any = {"ols": ("ols", False), "auto, with gradients": ("auto", True)}
    monkeypatch.setattr(interval_coverage, "ESTIMATORS", few)
    monkeypatch.setattr(interval_coverage, "FAMILIES", ("main",))
    monkeypatch.setattr(interval_coverage, "PLANTED_FAMILIES", ("main",))
    main(["--prompts", "1", "--repeats", "1", "--reference", "960"])
    parts = capsys.readouterr().out.strip().split("\n\n")
    assert parts[0::3] == ["*`scenes`*", "*`planted-redundant`*"]
    for table, sentence in ((parts[1], parts[2]), (parts[4], parts[5])):
        rows = [[one.strip() for one in row.strip("|").split("|")] for row in table.split("\n")[2:]]
        expected = [[kind, name] for kind in interval_coverage.KINDS for name in few]
        assert [row[:2] for row in rows] == expected
        assert min(float(row[2].split(" ")[0]) for row in rows) > 0.75  # 48 heads of one fit
        assert "1 prompts, 1 runs" in sentence
    assert parts[5].endswith("by more than 0.000.")  # the planted truth is exact
