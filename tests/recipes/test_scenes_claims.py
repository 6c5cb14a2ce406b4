"""What the documents claim of the embedded model, measured again on fewer prompts, with its control."""

import pytest

from mmlens.analyses import blocked_accuracy, head_attribution, map_similarity
from mmlens.datasets import scenes
from mmlens.interventions import Block
from mmlens.model import HookedVLM
from mmlens.result import AccuracyResult


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    """The shipped model."""
    return HookedVLM.from_pretrained("scenes")


@pytest.fixture(scope="module")
def accuracy(model: HookedVLM) -> AccuracyResult:
    """Accuracy of every family, with and without image-to-text attention, and with it in later layers only."""
    families = {family: scenes.prompts("heldout", 60, family=family, seed=7) for family in scenes.FAMILIES}
    conditions = {
        "blocked": [Block(src="image", dst="text")],
        "later": [Block(src="image", dst="text", layers=[0, 1])],
    }
    return blocked_accuracy(model, families, conditions=conditions, dataset="scenes", progress=False)


@pytest.mark.parametrize(
    ("family", "least"),
    [("digit", 0.8), *((family, 0.93) for family in scenes.FAMILIES if family != "digit")],
)
def test_every_family_is_answered(accuracy: AccuracyResult, family: str, least: float) -> None:
    assert float(accuracy.data["accuracy"].sel(family=family, condition="clean")) >= least


def test_without_the_image_no_family_beats_guessing(accuracy: AccuracyResult) -> None:
    """The lower end of the 95 % interval lies at or below the majority rate, and far below the clean accuracy."""
    blocked = accuracy.data.sel(condition="blocked")
    assert (blocked["interval"].sel(bound="lower") <= accuracy.data["majority"]).all()
    clean = accuracy.data["interval"].sel(condition="clean", bound="lower")
    assert (clean > blocked["interval"].sel(bound="upper")).all()


def test_most_of_the_accuracy_can_flow_after_the_first_two_layers(accuracy: AccuracyResult) -> None:
    found = accuracy.data["accuracy"].sel(family=list(scenes.FAMILIES))
    kept = found.sel(condition="later") / found.sel(condition="clean")
    assert int((kept >= 0.8).sum()) >= 3


def test_the_linear_fit_holds_and_the_control_has_next_to_no_effect_to_fit(model: HookedVLM) -> None:
    """A good fit is no evidence: the random model's is better, of an effect that is next to nothing."""
    prompts = scenes.prompts("attribution", 24, family="main", seed=11)
    trained = head_attribution(model, prompts, progress=False)
    control = head_attribution(HookedVLM.from_pretrained("scenes-random"), prompts[:8], progress=False)
    assert float(trained.r2.mean()) >= 0.85
    effects = [float(abs(one.data["clean"] - one.data["ablated"]).mean()) for one in (trained, control)]
    assert effects[1] < 0.05 * effects[0]
    assert trained.info.settings["n_heldout"] > 0


def test_families_use_different_heads(model: HookedVLM) -> None:
    maps = {
        family: head_attribution(model, scenes.prompts("heldout", 8, family=family, seed=8), progress=False)
        for family in ("colour", "count")
    }
    found = map_similarity(maps, seed=0).data.sel({"pair": 0})
    assert float(found["gap_interval"].sel(bound="lower")) > 0 and float(found["p_value"]) < 0.05
