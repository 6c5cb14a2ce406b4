"""How well each method finds known circuits: ``python -m mmlens.recipes.planted_table``.

For every planted model and every question family that its truth claims:

1. Score all heads with every method, on the first prompts that the truth was measured on: what a head is worth is a
   mean over prompts, and a method is to estimate that mean, not to guess how other prompts differ. Head attribution may
   fit at most MAX_MASKS masks per prompt, pooled head attribution as many for all prompts of a family together.
2. Judge the scores by the truth on the same prompts (:func:`mmlens.analyses.recovery`). Closed heads read the mean
   image token, unless the effects of different prompts cancel under that baseline; then they cannot see the image.
3. Random scores are judged, too: what chance recovers.

Prints one table of planting × method, means over families with the worst family beside them, and the masks that were
fitted; writes all figures to a JSON file.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from mmlens.analyses import (
    attention_weight,
    gate_attribution,
    head_attribution,
    pooled_head_attribution,
    recovery,
    single_head_ablation,
)
from mmlens.datasets import scenes
from mmlens.errors import DesignError
from mmlens.inputs import Prompt
from mmlens.interventions import HeadBaseline
from mmlens.model import HookedVLM
from mmlens.pretrained import names, path
from mmlens.recipes.markdown import markdown_table
from mmlens.recipes.planted_truth import BASELINES, TRUTH
from mmlens.recipes.planted_truth import SEED as TRUTH_SEED
from mmlens.result import (
    AttributionResult,
    PlantedTruth,
    PooledAttributionResult,
    RecoveryResult,
    write_atomically,
)

PREFIX = "planted-"
MERITS = ("auroc", "average_precision", "recovered_at_k", "correlation")
N, SEED, N_RANDOM = 24, 33, 200
MAX_MASKS = 960
"""Fitted masks of one prompt (of one family, if pooled); ten Hadamard blocks of these models."""
CONSISTENCY = 0.5
"""Below this the effects of different prompts cancel (PlantedTruth.consistency)."""


def method_scores(
    model: HookedVLM,
    prompts: Sequence[Prompt],
    *,
    baseline: HeadBaseline = "mean_image_tokens",
    seed: int = SEED,
) -> dict[str, Any]:
    """Step 1: method name → scores of every head.

    Args:
        model: a model.
        prompts: prompts with answers.
        baseline: what closed heads read.
        seed: of head masks.
    """
    options: dict[str, Any] = {"baseline": baseline, "seed": seed, "progress": False}
    return {
        "head attribution": head_attribution(model, prompts, max_masks=MAX_MASKS, **options),
        "pooled head attribution": pooled_head_attribution(
            model, prompts, max_masks=MAX_MASKS // len(prompts), **options
        ),
        "gate attribution": gate_attribution(model, prompts, baseline=baseline, progress=False).effect,
        "single-head ablation": single_head_ablation(model, prompts, baseline=baseline, progress=False),
        "attention weight": attention_weight(model, prompts, progress=False),
    }


def baseline_of(truth: PlantedTruth, family: str) -> HeadBaseline:
    """The first baseline under which the prompts of a family agree on what the image does."""
    for baseline in BASELINES:
        if truth.consistency(family, baseline=baseline) >= CONSISTENCY:
            return baseline
    raise DesignError(f"the effects of {family!r} prompts cancel under every baseline; leave the family out.")


def judge(
    scores: Mapping[str, Any], truth: PlantedTruth, family: str, baseline: HeadBaseline
) -> list[dict[str, Any]]:
    """Steps 2 and 3: one row a method, random scores last (the mean of N_RANDOM draws)."""
    result = recovery(scores, truth, family=family, baseline=baseline)
    about = {"family": family, "baseline": baseline}
    rows = [
        {**about, "method": name, **_merits(result, name), "n_masks": _masks(one)}
        for name, one in scores.items()
    ]
    rng = np.random.default_rng(SEED)
    draws = {f"draw {i}": rng.random(truth.shape) for i in range(N_RANDOM)}
    random = recovery(draws, truth, family=family, baseline=baseline, n_boot=1)
    means = {merit: float(np.nanmean(random.data[merit])) for merit in MERITS}
    return [*rows, {**about, "method": "random", **means}]


def _merits(result: RecoveryResult, method: str) -> dict[str, Any]:
    row = result.data.sel({"method": method})  # as a keyword, method means something else
    found: dict[str, Any] = {merit: float(row[merit]) for merit in MERITS}
    for merit in MERITS:
        found[f"{merit}_interval"] = [float(end) for end in row[f"{merit}_interval"].values]
    return found


def _masks(scores: Any) -> list[int]:
    """Head masks fitted to each prompt; none by methods that fit nothing."""
    fits = isinstance(scores, AttributionResult | PooledAttributionResult)
    return [int(n) for n in scores.data["n_masks"].values] if fits else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one row a planting and method, mean over families (worst family).

    Where a method fitted head masks, a column tells how many per prompt: median (most).
    """
    header = ["planting", "method", "AUROC", "average precision", "recovered at k", "correlation"]
    counted = any(row.get("n_masks") for row in rows)
    header, lines = header + ["masks per prompt"] * counted, []
    for planting, method in dict.fromkeys((row["planting"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["planting"], row["method"]) == (planting, method)]
        cells = []
        for merit in MERITS:
            values = np.array([row[merit] for row in chosen])
            known = values[np.isfinite(values)]
            cells.append(
                f"{known.mean():.3f} ({known.min():.3f})" if len(known) == len(values) else "undefined"
            )
        masks = [n for row in chosen for n in row.get("n_masks", [])]
        told = f"{np.median(masks):.0f} ({max(masks)})" if masks else "none"
        lines.append([planting, method, *cells, *[told] * counted])
    return markdown_table(header, lines)


def rows_of(name: str, *, n: int = N) -> list[dict[str, Any]]:
    """Steps 1-3 for one planted model.

    Args:
        name: of the embedded model.
        n: prompts of each family.
    """
    truth = PlantedTruth.load(path(name) / TRUTH).first(n)
    model = HookedVLM.from_pretrained(name)
    found = []
    for family in truth.families:
        prompts = scenes.prompts("heldout", n, family=family, seed=TRUTH_SEED)
        baseline = baseline_of(truth, family)
        rows = judge(method_scores(model, prompts, baseline=baseline), truth, family, baseline)
        found += [{"planting": name.removeprefix(PREFIX), **row} for row in rows]
    return found


def main(given: list[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.planted_table", description=__doc__)
    parser.add_argument("--models", nargs="*", help="planted models; all of them if none is named")
    parser.add_argument("--n", type=int, default=N, help="prompts of each family")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args(given)
    chosen = arguments.models or [name for name in names() if name.startswith(PREFIX)]
    rows = [row for name in chosen for row in rows_of(name, n=arguments.n)]
    typer.echo(table(rows))
    if arguments.out:
        write_atomically(arguments.out, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
