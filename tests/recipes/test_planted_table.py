"""The table of methods by plantings: which baseline a family is judged under, and that every row is there."""

import numpy as np
import pytest

from mmlens.datasets import scenes
from mmlens.errors import DesignError
from mmlens.model import HookedVLM
from mmlens.pretrained import path
from mmlens.recipes.planted_table import (
    CONSISTENCY,
    MAX_MASKS,
    MERITS,
    baseline_of,
    judge,
    method_scores,
    table,
)
from mmlens.recipes.planted_truth import SEED, TRUTH
from mmlens.result import PlantedTruth
from tests.result.test_planted_truth import truth

CANCELLING = np.array([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]])


def test_only_the_side_family_of_the_relay_is_judged_without_sight_of_the_image() -> None:
    relay = PlantedTruth.load(path("planted-relay") / TRUTH)
    assert relay.consistency("side") < CONSISTENCY
    chosen = {family: baseline_of(relay, family) for family in relay.families}
    assert chosen == dict.fromkeys(relay.families, "mean_image_tokens") | {"side": "knockout"}


def test_effects_that_cancel_under_every_baseline_are_refused() -> None:
    both = np.stack([CANCELLING, CANCELLING])[:, None]
    cancelling = truth(
        value=both,
        accuracy=np.full((2, 1, 4), 0.5),
        baselines=["mean_image_tokens", "knockout"],
    )
    with pytest.raises(DesignError, match="cancel under every baseline"):
        baseline_of(cancelling, "colour")


def test_attribution_on_the_truths_own_prompts_finds_the_heads_in_use() -> None:
    name, n = "planted-layer", 8
    prompts = scenes.prompts("heldout", n, family="main", seed=SEED)
    scores = method_scores(HookedVLM.from_pretrained(name), prompts)
    rows = judge(scores, PlantedTruth.load(path(name) / TRUTH).first(n), "main", "mean_image_tokens")
    assert [row["method"] for row in rows] == [*scores, "random"]
    best = rows[0]
    assert best["method"] == "head attribution" and best["auroc"] == 1.0 and best["correlation"] >= 0.98
    assert rows[-1]["auroc"] < 0.8
    assert all(row["auroc"] == 1.0 for row in rows[:3])  # pooled and gates, too
    fitted = {row["method"]: row.get("n_masks", []) for row in rows}
    assert max(fitted["head attribution"]) <= MAX_MASKS
    assert sum(fitted["pooled head attribution"]) <= MAX_MASKS
    lines = table([{"planting": "layer", **row} for row in rows]).split("\n")
    assert len(lines) == 8 and lines[0].endswith("| masks per prompt |")
    assert lines[2].endswith("(192) |") and lines[-1].endswith("| none |")


def test_without_masks_there_is_no_column_of_them() -> None:
    row = {"planting": "layer", "method": "mine", **dict.fromkeys(MERITS, 1.0)}
    assert table([row]).split("\n")[0].endswith("| correlation |")
    assert table([row | {"correlation": float("nan")}]).endswith("| undefined |")
