"""What the documents claim of the embedded model, measured again on fewer prompts, with its control."""

import pytest

from mmlens.analyses import blocked_accuracy, head_attribution
from mmlens.datasets import scenes
from mmlens.model import HookedVLM
from mmlens.model.random_twin import random_twin
from mmlens.result import AccuracyResult


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    """The shipped model."""
    return HookedVLM.from_pretrained("scenes")


@pytest.fixture(scope="module")
def accuracy(model: HookedVLM) -> AccuracyResult:
    """Accuracy of every family, with and without image-to-text attention."""
    families = {family: scenes.prompts("heldout", 60, family=family, seed=7) for family in scenes.FAMILIES}
    return blocked_accuracy(model, families, dataset="scenes", progress=False)


def test_the_main_object_is_known(accuracy: AccuracyResult) -> None:
    assert float(accuracy.data["accuracy"].sel(family="main", condition="clean")) >= 0.85


def test_without_the_image_no_family_beats_guessing(accuracy: AccuracyResult) -> None:
    """The lower end of the 95 % interval lies at or below the majority rate, and far below the clean accuracy."""
    blocked = accuracy.data.sel(condition="blocked")
    assert (blocked["interval"].sel(bound="lower") <= accuracy.data["majority"]).all()
    clean = accuracy.data["interval"].sel(condition="clean", bound="lower")
    assert (clean > blocked["interval"].sel(bound="upper")).all()


def test_the_linear_fit_holds_and_exceeds_the_control(model: HookedVLM) -> None:
    prompts = scenes.prompts("attribution", 24, family="main", seed=11)
    trained = head_attribution(model, prompts, progress=False)
    control = head_attribution(random_twin(model), prompts[:8], progress=False)
    assert float(trained.r2.mean()) >= 0.85
    assert float(trained.r2.mean()) > float(control.r2.mean()) + 0.2
    assert trained.info.settings["n_heldout"] > 0
