"""How well each method finds known circuits: ``python -m mmlens.recipes.planted_table``.

For every planted model and every question family that its truth claims:

1. Score all heads with every method, on prompts that the truth was not measured on.
2. Judge the scores by the truth (:func:`mmlens.analyses.recovery`).
3. Random scores are judged, too: what chance recovers.

Prints one table of planting × method, means over families with the worst family beside them, and writes all
figures to a JSON file.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from mmlens.analyses import attention_weight, head_attribution, recovery, single_head_ablation
from mmlens.datasets import scenes
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.pretrained import names, path
from mmlens.recipes.planted_truth import TRUTH
from mmlens.result import PlantedTruth, RecoveryResult, write_atomically

PREFIX = "planted-"
MERITS = ("auroc", "average_precision", "recovered_at_k", "correlation")
N, SEED, N_RANDOM = 24, 33, 200


def method_scores(model: HookedVLM, prompts: Sequence[Prompt], *, seed: int = SEED) -> dict[str, Any]:
    """Step 1: method name → scores of every head.

    Args:
        model: a model.
        prompts: prompts with answers.
        seed: of head masks.
    """
    return {
        "head attribution": head_attribution(model, prompts, seed=seed, progress=False),
        "single-head ablation": single_head_ablation(model, prompts, progress=False),
        "attention weight": attention_weight(model, prompts, progress=False),
    }


def judge(scores: Mapping[str, Any], truth: PlantedTruth, family: str) -> list[dict[str, Any]]:
    """Steps 2 and 3: one row a method, random scores last (the mean of N_RANDOM draws)."""
    result = recovery(scores, truth, family=family)
    rows = [{"family": family, "method": name, **_merits(result, name)} for name in scores]
    rng = np.random.default_rng(SEED)
    draws = {f"draw {i}": rng.random(truth.shape) for i in range(N_RANDOM)}
    random = recovery(draws, truth, family=family, n_boot=1)
    means = {merit: float(np.nanmean(random.data[merit])) for merit in MERITS}
    return [*rows, {"family": family, "method": "random", **means}]


def _merits(result: RecoveryResult, method: str) -> dict[str, Any]:
    row = result.data.sel({"method": method})  # as a keyword, method means something else
    found: dict[str, Any] = {merit: float(row[merit]) for merit in MERITS}
    for merit in MERITS:
        found[f"{merit}_interval"] = [float(end) for end in row[f"{merit}_interval"].values]
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one row a planting and method, mean over families (worst family)."""
    lines = [
        "| planting | method | AUROC | average precision | recovered at k | correlation |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for planting, method in dict.fromkeys((row["planting"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["planting"], row["method"]) == (planting, method)]
        cells = []
        for merit in MERITS:
            values = np.array([row[merit] for row in chosen])
            known = values[np.isfinite(values)]
            cells.append(
                f"{known.mean():.3f} ({known.min():.3f})" if len(known) == len(values) else "undefined"
            )
        lines.append(f"| {planting} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows_of(name: str, *, n: int = N) -> list[dict[str, Any]]:
    """Steps 1-3 for one planted model.

    Args:
        name: of the embedded model.
        n: prompts of each family.
    """
    truth = PlantedTruth.load(path(name) / TRUTH)
    model = HookedVLM.from_pretrained(name)
    found = []
    for family in truth.families:
        prompts = scenes.prompts("attribution", n, family=family, seed=SEED)
        rows = judge(method_scores(model, prompts), truth, family)
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
