"""What a map that prompts share costs and tells: ``python -m mmlens.recipes.pooled_table``.

1. Per prompt, a reference: least squares on many Hadamard blocks; what a pooled map should be is their mean.
2. Pooled head attribution with a few numbers of masks per prompt, and with its own choice, each with several seeds.
3. Correlation over heads with the reference, how many intervals hold it (the reference's own error counted in), and how
   well the common map predicts single prompts.

Prints a table in Markdown: prompts of one family, and the same with prompts of another family among them.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import typer

from mmlens.analyses import pooled_head_attribution
from mmlens.analyses.samples import as_samples, sample_generator
from mmlens.datasets import scenes
from mmlens.engine import open_runs
from mmlens.inputs import Prompt
from mmlens.metrics import METRICS
from mmlens.model import HookedVLM
from mmlens.recipes.interval_coverage import Reference, held, measured_reference
from mmlens.recipes.markdown import markdown_table

MODEL, FAMILY, OTHER = "scenes", "main", "colour"
N, REPEATS, REFERENCE, SEED = 8, 3, 1920, 0
MASKS: tuple[Any, ...] = (24, 48, 96, "auto")


def references(model: HookedVLM, prompts: Sequence[Prompt], n_masks: int, seed: int) -> list[Reference]:
    """Step 1.

    Args:
        model: the model.
        prompts: prompts with answers.
        n_masks: masks of each.
        seed: of the masks.
    """
    inputs = as_samples(model, list(prompts))
    found = []
    for i in range(inputs.batch_size):
        check = sample_generator(seed, i, "check")
        runs = open_runs(model, inputs.select([i]), metric=METRICS["logit"], generator=check)
        found.append(measured_reference(runs, n_masks, sample_generator(seed, i)))
    return found


def mean_reference(known: Sequence[Reference]) -> Reference:
    """What a map of all these prompts should be; their errors are independent."""
    half = np.sqrt(sum(one.half**2 for one in known)) / len(known)
    return Reference(theta=np.mean([one.theta for one in known], axis=0), half=half)


def rows_of(
    model: HookedVLM,
    prompts: Sequence[Prompt],
    known: Sequence[Reference],
    *,
    repeats: int = REPEATS,
    seed: int = SEED,
) -> list[list[str]]:
    """Steps 2 and 3: one row per number of masks, after its name.

    Args:
        model: the model.
        prompts: prompts with answers.
        known: the reference of each.
        repeats: seeds.
        seed: the seed before the first.
    """
    truth, rows = mean_reference(known), []
    for n_masks in MASKS:
        found = [
            pooled_head_attribution(model, list(prompts), n_masks=n_masks, seed=seed + k + 1, progress=False)
            for k in range(repeats)
        ]
        r = [np.corrcoef(one.theta.values.ravel(), truth.theta.ravel())[0, 1] for one in found]
        covered = [held(np.moveaxis(one.interval.values, -1, 0), truth)[0].mean() for one in found]
        used = np.concatenate([one.data["n_masks"].values for one in found])
        r2 = np.array([one.r2.values for one in found])
        rows.append(
            [
                str(n_masks),
                f"{np.median(used):.0f}",
                f"{np.median(r):.3f} ({np.min(r):.3f})",
                f"{np.mean(covered):.3f}",
                f"{np.median(r2):.2f} ({np.min(r2):.2f})",
            ]
        )
    return rows


def report(*, n: int = N, repeats: int = REPEATS, n_reference: int = REFERENCE, seed: int = SEED) -> str:
    """The table.

    Args:
        n: prompts.
        repeats: seeds.
        n_reference: masks of each prompt's reference.
        seed: of scenes and of the reference's masks.
    """
    model = HookedVLM.from_pretrained(MODEL)
    one, other = (scenes.prompts("heldout", n, family=family, seed=seed) for family in (FAMILY, OTHER))
    sets = {f"{FAMILY} ({n})": one, f"{FAMILY} ({n - n // 2}), {OTHER} ({n // 2})": [*one[n // 2 :], *other]}
    rows = []
    for name, prompts in sets.items():
        chosen = prompts[:n]
        known = references(model, chosen, n_reference, seed)
        rows += [[name, *row] for row in rows_of(model, chosen, known, repeats=repeats, seed=seed)]
    header = ["prompts", "asked", "masks per prompt", "r with the mean of single maps (worst)"]
    header += ["intervals that hold it", "held-out R² of a prompt: median (worst)"]
    return markdown_table(header, rows)


def main(given: list[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.pooled_table", description=__doc__)
    parser.add_argument("--prompts", type=int, default=N, help="prompts")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="seeds")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="masks of each prompt's reference")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of scenes and of the reference's masks")
    options = parser.parse_args(given)
    typer.echo(
        report(n=options.prompts, repeats=options.repeats, n_reference=options.reference, seed=options.seed)
    )


if __name__ == "__main__":
    main()
