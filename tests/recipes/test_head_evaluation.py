"""The evaluation of rankings: its rows, a planted redundancy that one method misses, and what the command prints."""

from typing import Any

import numpy as np
import pytest

from mmlens.datasets import scenes
from mmlens.model import HookedVLM
from mmlens.recipes import head_evaluation
from mmlens.recipes.head_evaluation import CHANGES, curve_table, curves, main, method_scores, part_of_methods
from mmlens.result.paired_leads import RANDOM
from tests.recipes.test_map_claims import cells
from tests.result.test_paired_leads import result, steps

SMALL = {"n_fit": 3, "n_heldout": 6, "n_random": 4}


def test_rows_hold_areas_leads_and_numbers_of_heads() -> None:
    random = np.stack([steps(3, 3), steps(3, 3), steps(4, 4)])
    given = result(
        {"head attribution": steps(1, 1), "worse": steps(3, 3), "same": steps(1, 1)}, random=random
    )
    rows = {row[0]: row[1:] for row in cells(curve_table(completed(given), n_boot=50))}
    assert list(rows) == ["head attribution", "worse", "same", RANDOM]
    assert rows["head attribution"][:4] == ["0.875", "", "1, 1", ""]
    assert rows["worse"][:4] == ["0.375", "**+0.500 [+0.500, +0.500]**", "3, 3", "**+2 [+2, +2]**"]
    assert rows["same"][1] == "+0.000 [+0.000, +0.000]" and rows["same"][3] == "+0 [+0, +0]"
    assert rows[RANDOM][0] == "0.375 (0.250–0.375)" and rows[RANDOM][2] == "3, 3"


def completed(given: Any) -> Any:
    """The same with random completeness, and the areas of random curves, as ``faithfulness`` gives them."""
    curve = given.data["random_faithfulness"]
    area = (("draw", "sample"), np.trapezoid(curve.values, given.data["size"] / 4, axis=-1))
    both = {f"random_auc_{name}": area for name in ("faithfulness", "completeness")}
    return type(given)(data=given.data.assign({"random_completeness": curve, **both}), info=given.info)


@pytest.fixture(scope="module")
def redundant() -> Any:
    return curves(HookedVLM.from_pretrained("planted-redundant"), "colour", **SMALL, seed=0)


def test_one_head_at_a_time_misses_heads_that_stand_in_for_each_other(redundant: Any) -> None:
    rows = {row[0]: row[1:] for row in cells(curve_table(redundant, n_boot=200))}
    assert len(rows) == 7 and rows["head attribution"][6].endswith(", 3")
    assert rows["single-head ablation"][5].startswith("**+") and rows["gates, kept"][5].startswith("**+")
    assert rows[RANDOM][5].startswith("**+")
    area = {name: float(row[4].split(" ")[0]) for name, row in rows.items()}
    assert area["head attribution"] > 0.9 > 0.6 > area[RANDOM]
    assert area["gates, path"] == pytest.approx(area["head attribution"], abs=0.02)


def test_rankings_and_their_judges_are_different_prompts(redundant: Any) -> None:
    assert redundant.n == SMALL["n_heldout"]
    assert redundant.info.settings["prompts_also_fitted"] == {
        "head attribution": 0,
        "single-head ablation": 0,
        "attention weight": 0,
    }


@pytest.mark.parametrize("family", CHANGES)
def test_every_family_has_pairs_for_the_gradients(family: str) -> None:
    model = HookedVLM.from_pretrained("scenes")
    pairs = scenes.paired_prompts("attribution", 1, change=CHANGES[family], family=family)
    scores = method_scores(model, pairs)
    assert next(iter(scores)) == "head attribution" and len(scores) == 6
    assert all(np.ptp(scores[name]) > 0 for name in ("gates, path", "attribution patching"))


def test_where_the_image_does_not_help_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_evaluation, "CHANGES", {"count": "count"})
    text = part_of_methods(("scenes-random",), {**SMALL, "n_fit": 1}, n_boot=20)
    assert text.startswith("`scenes-random`, count, rankings from 1 prompts, judged on 6: no curves;")
    assert "mean nothing." in text and "|" not in text


def test_the_command_prints_the_parts_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def told(name: str) -> Any:
        def table(*given: Any, **options: Any) -> str:
            asked[name] = (given, options)
            return name

        return table

    for name in ("part_of_methods", "class_table", "appearance_table", "transfer_tables"):
        monkeypatch.setattr(head_evaluation, name, told(name))
    main(["--fit", "2", "--heldout", "3", "--styled", "5", "--boot", "7", "--seed", "1"])
    assert capsys.readouterr().out.split() == [
        "part_of_methods",
        "class_table",
        "appearance_table",
        "transfer_tables",
    ]
    assert asked["part_of_methods"][0][1] == {"n_fit": 2, "n_heldout": 3, "n_random": 10}
    assert asked["appearance_table"][1] == {"n": 5, "n_boot": 7, "seed": 1}
    main(["--parts", "transfer"])
    assert capsys.readouterr().out.strip() == "transfer_tables"
