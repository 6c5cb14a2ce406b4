"""Which heads carried the image into the answer, with the evidence: Kim et al. 2025 (arXiv 2509.17588) end to end.

1. Head attribution of every prompt, its fit judged on fresh masks.
2. The same for a random-weight twin, as control.
3. Single-head ablation and attention weight, for comparison.
4. Rankings from these prompts, judged on *other* prompts: faithfulness and completeness against layer-matched
   random heads.
5. Accuracy by question family with all image-to-text attention blocked, if families are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmlens.analyses import (
    attention_weight,
    blocked_accuracy,
    faithfulness,
    head_attribution,
    single_head_ablation,
)
from mmlens.errors import DesignError, ResultError
from mmlens.inputs import Inputs, Prompt
from mmlens.interventions import HeadBaseline
from mmlens.model import HookedVLM
from mmlens.model.random_twin import random_twin
from mmlens.report import write_report
from mmlens.result import AccuracyResult, AttributionResult, FaithfulnessResult, HeadScoreResult, Result

TWIN_SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionStudy:
    """Everything the study measured; what was not asked for is None.

    Attributes:
        attribution: head attribution of the model.
        scores: the methods it is compared with, on the same prompts.
        comparisons: curves of all methods on the held-out prompts.
        accuracy: accuracy with and without image-to-text attention.
        control: head attribution of the random-weight twin.
        control_comparisons: curves of the twin; None too if blocking the image did not lower its metric.
        control_accuracy: accuracy of the twin.
        remarks: what could not be measured, and why.
    """

    attribution: AttributionResult
    scores: tuple[HeadScoreResult, ...]
    comparisons: FaithfulnessResult | None = None
    accuracy: AccuracyResult | None = None
    control: AttributionResult | None = None
    control_comparisons: FaithfulnessResult | None = None
    control_accuracy: AccuracyResult | None = None
    remarks: tuple[str, ...] = ()

    def results(self) -> dict[str, Result]:
        """All results by the file name they are saved under."""
        named: dict[str, Result | None] = {
            "attribution": self.attribution,
            "comparisons": self.comparisons,
            "accuracy": self.accuracy,
            "control_attribution": self.control,
            "control_comparisons": self.control_comparisons,
            "control_accuracy": self.control_accuracy,
        }
        named |= {f"score_{one.data.attrs['method'].replace(' ', '_')}": one for one in self.scores}
        return {name: result for name, result in named.items() if result is not None}


def attribution_study(
    model: HookedVLM,
    prompts: Sequence[Prompt] | Inputs,
    *,
    heldout: Sequence[Prompt] | Inputs | None = None,
    families: Mapping[str, Sequence[Prompt]] | None = None,
    dataset: str = "prompts",
    metric: Any = "logit",
    baseline: HeadBaseline = "mean_image_tokens",
    n_masks: int | Literal["auto"] = "auto",
    n_random: int = 10,
    control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> AttributionStudy:
    """Runs the study.

    Args:
        model: the model.
        prompts: prompts with answers to attribute.
        heldout: other prompts to judge the rankings on; None leaves the curves out.
        families: question family → prompts, for the accuracies; None leaves them out.
        dataset: name of the data, for the record.
        metric: see :func:`mmlens.head_attribution`.
        baseline: what an ablated head reads in place of the image.
        n_masks: head masks to fit per prompt.
        n_random: layer-matched random rankings.
        control: whether to repeat everything on a random-weight twin.
        seed: of masks, draws and bootstrap.
        progress: whether to show bars.
    """
    options = {"metric": metric, "baseline": baseline, "seed": seed, "progress": progress}
    measured = _measure(model, prompts, heldout, options, n_masks, n_random)
    accuracy = blocked_accuracy(model, families, dataset=dataset, progress=progress) if families else None
    if not control:
        return AttributionStudy(**measured, accuracy=accuracy)
    twin = random_twin(model, seed=TWIN_SEED)
    theirs = _measure(twin, prompts, heldout, options, n_masks, n_random, may_lack_effect=True)
    return AttributionStudy(
        **{**measured, "remarks": (*measured["remarks"], *theirs["remarks"])},
        accuracy=accuracy,
        control=theirs["attribution"],
        control_comparisons=theirs["comparisons"],
        control_accuracy=blocked_accuracy(twin, families, dataset=dataset, progress=progress)
        if families
        else None,
    )


def _measure(
    model: HookedVLM,
    prompts: Sequence[Prompt] | Inputs,
    heldout: Sequence[Prompt] | Inputs | None,
    options: dict[str, Any],
    n_masks: int | Literal["auto"],
    n_random: int,
    *,
    may_lack_effect: bool = False,
) -> dict[str, Any]:
    attribution = head_attribution(model, prompts, n_masks=n_masks, **options)
    single = single_head_ablation(
        model, prompts, **{key: options[key] for key in ("metric", "baseline", "progress")}
    )
    weight = attention_weight(model, prompts, progress=options["progress"])
    comparisons, remarks = None, ()
    if heldout is not None:
        scores = {"head attribution": attribution, "single-head ablation": single, "attention weight": weight}
        try:
            comparisons = faithfulness(model, heldout, scores, n_random=n_random, **options)
        except DesignError as error:
            if not may_lack_effect:
                raise
            remarks = (f"No curves for the random-weight control: {error}",)
    return {
        "attribution": attribution,
        "scores": (single, weight),
        "comparisons": comparisons,
        "remarks": remarks,
    }


def save_study(
    study: AttributionStudy, folder: str | Path, *, title: str, command: str | None = None
) -> Path:
    """Writes every result and the report; each file appears whole or not at all.

    Args:
        study: what to save.
        folder: where; made if absent.
        title: of the report.
        command: how to run it again, for the report.

    Returns:
        The report's path.

    Raises:
        ResultError: the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot make the folder {folder} ({error}); choose another with --out.") from error
    for name, result in study.results().items():
        result.save(folder / f"{name}.mmlens")
    return write_report(
        folder / "report.html",
        title=title,
        attribution=study.attribution,
        comparisons=study.comparisons,
        scores=study.scores,
        control=study.control,
        control_comparisons=study.control_comparisons,
        accuracy=study.accuracy,
        control_accuracy=study.control_accuracy,
        remarks=study.remarks,
        command=command,
    )
