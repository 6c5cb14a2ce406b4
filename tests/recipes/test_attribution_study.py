"""The study end to end on a tiny model: everything measured, saved, reloaded."""

from pathlib import Path
from typing import Any

import pytest

from mmlens.errors import DesignError, ResultError
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.recipes import AttributionStudy, attribution_study, save_study
from mmlens.result import Result
from tests.tiny import tiny_image, tiny_llava, tiny_processor

OPTIONS: dict[str, Any] = {"n_masks": 96, "n_random": 10, "progress": False}


def prompts(first: int, n: int) -> list[Prompt]:
    """Prompts about different random images."""
    return [
        Prompt(question="what colour is this object ?", image=tiny_image(first + i), answer="red")
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    """Grouped-query attention."""
    return HookedVLM.from_hf(tiny_llava(seed=1, n_kv=2), tiny_processor())


@pytest.fixture(scope="module")
def study(model: HookedVLM) -> AttributionStudy:
    """The whole study, control included."""
    held = prompts(10, 4)
    return attribution_study(model, prompts(0, 2), heldout=held, families={"colour": held}, **OPTIONS)


def test_everything_was_measured(study: AttributionStudy) -> None:
    assert study.attribution.n == 2
    assert [score.data.attrs["method"] for score in study.scores] == [
        "single-head ablation",
        "attention weight",
    ]
    assert study.comparisons is not None and study.comparisons.n == 4
    assert list(study.comparisons.data["method"].values) == [
        "head attribution",
        "single-head ablation",
        "attention weight",
    ]
    assert study.control is not None and study.accuracy is not None and study.control_accuracy is not None
    assert (study.control_comparisons is None) == bool(study.remarks)


def test_the_control_is_another_model(study: AttributionStudy) -> None:
    assert study.control is not None
    assert study.control.info.weight_fingerprint != study.attribution.info.weight_fingerprint
    assert "random weights" in study.control.info.model_id


def test_results_and_report_are_saved_and_reload(study: AttributionStudy, tmp_path: Path) -> None:
    report = save_study(study, tmp_path / "out", title="A tiny study", command="mmlens attribute x.png")
    assert report.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    for name, result in study.results().items():
        again = Result.load(tmp_path / "out" / f"{name}.mmlens")
        assert again.data.identical(result.data)
        assert again.info == result.info
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".mmlens", ".html")]


def test_the_same_seed_gives_the_same_numbers(model: HookedVLM, study: AttributionStudy) -> None:
    again = attribution_study(model, prompts(0, 2), control=False, **OPTIONS)
    assert again.attribution.data["theta"].identical(study.attribution.data["theta"])
    assert again.comparisons is None and again.control is None


def test_evaluating_on_the_fitted_prompts_is_refused(model: HookedVLM) -> None:
    same = prompts(0, 2)
    with pytest.raises(DesignError, match="judged on other prompts"):
        attribution_study(model, same, heldout=same, control=False, **OPTIONS)


def test_a_folder_that_cannot_be_made(study: AttributionStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultError, match="--out"):
        save_study(study, tmp_path / "file" / "out", title="t")
