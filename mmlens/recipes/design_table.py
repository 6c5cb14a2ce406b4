"""Masks needed by design and estimator: ``python -m mmlens.recipes.design_table``.

1. Per prompt, a reference: least squares on many Hadamard blocks.
2. Per prompt, law of masks and draw, run masks once; fit growing numbers of them with every estimator and correlate the
   coefficients over heads with the reference.
3. Masks needed: the smallest number from which on the median correlation over prompts and draws stays at a target.
4. On a model with redundant heads, interactions of every pair of them beside the exact ones.

Prints two tables in Markdown, and the correlation of the gradients alone with the reference between them. Hadamard
blocks come whole; what the gradients cost is not in the numbers of masks.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Float

from mmlens.analyses.design import DesignKind, MaskDesign, block_size, draw_design
from mmlens.analyses.fit import solve
from mmlens.analyses.fit_units import reduced
from mmlens.analyses.head_prior import OfSample, head_priors
from mmlens.analyses.interactions import head_interactions
from mmlens.analyses.samples import as_samples, sample_generator
from mmlens.datasets import scenes
from mmlens.engine import open_runs
from mmlens.errors import DesignError
from mmlens.metrics import METRICS
from mmlens.model import HookedVLM
from mmlens.pretrained import path
from mmlens.recipes.markdown import markdown_table
from mmlens.recipes.planted_truth import SEED as TRUTH_SEED
from mmlens.recipes.planted_truth import TRUTH
from mmlens.result import PlantedTruth

MODEL, REDUNDANT = "scenes", "planted-redundant"
N, DRAWS, SEED = 4, 3, 0
REFERENCE, LARGEST, SMALLEST = 6048, 960, 24
"""Masks of the reference, and the largest and smallest number fitted; rounded to whole blocks."""
TARGETS = (0.95, 0.99)
SHOWN = 96
"""The correlation at about this number of masks is shown, too."""
KINDS: tuple[DesignKind, ...] = ("iid", "antithetic", "hadamard")
ESTIMATORS = ("ols", "ridge", "prior_ridge", "lasso", "auto", "best")
PRIOR = "gradients alone"
NAMES = {
    "ols": "least squares",
    "prior_ridge": "ridge around gradients of gates",
    "auto": "`auto`, with gradients",
    "best": "`best`, with gradients",
}


def numbers(
    kind: DesignKind, n_heads_total: int, *, smallest: int = SMALLEST, largest: int = LARGEST
) -> list[int]:
    """Numbers of masks that are fitted, about a third apart; whole blocks of the law.

    Args:
        kind: the law of the masks.
        n_heads_total: layers times heads per layer.
        smallest: where to begin.
        largest: where to end.
    """
    step = block_size(n_heads_total, kind)
    wanted = smallest * (4 / 3) ** np.arange(np.log(largest / smallest) / np.log(4 / 3) + 1e-9)
    return sorted({max(round(n / step), 1) * step for n in [*wanted.tolist(), float(largest)]})


def correlations(
    design: MaskDesign,
    values: torch.Tensor,
    counts: Sequence[int],
    reference: Float[np.ndarray, "layer head"],
    prior: Float[np.ndarray, "layer head"] | None,
) -> dict[str, list[float]]:
    """Step 2: estimator → correlation with the reference for each number of masks; -1 where it cannot be fitted.

    Args:
        design: the masks, of which the first are fitted.
        values: the metric under each.
        counts: how many.
        reference: coefficients to compare with.
        prior: what to shrink towards.
    """
    found: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    if prior is not None:
        found[PRIOR] = [float(np.corrcoef(prior.ravel(), reference.ravel())[0, 1])] * len(counts)
    for count in counts:
        index = torch.arange(count)
        units = reduced(design.subset(index), values[index].double().numpy())
        for name in ESTIMATORS:
            around = None if prior is None or name in ("ols", "ridge", "lasso") else prior.ravel()
            try:
                theta = solve(units, name, around).theta
            except DesignError:  # too few for this estimator
                found[name].append(-1.0)
                continue
            varies = np.ptp(theta) > 0  # lasso may leave no head
            found[name].append(float(np.corrcoef(theta, reference.ravel())[0, 1]) if varies else -1.0)
    return found


def needed(counts: Sequence[int], r: Float[np.ndarray, "case number"], target: float) -> str:
    """Step 3: the smallest number from which on the median over cases stays at the target or above."""
    short = np.flatnonzero(np.median(r, axis=0) < target)
    first = int(short[-1]) + 1 if len(short) else 0
    return str(counts[first]) if first < len(counts) else f"> {counts[-1]}"


def measured(
    model: HookedVLM,
    prompts: Any,
    *,
    n_draws: int = DRAWS,
    n_reference: int = REFERENCE,
    largest: int = LARGEST,
    seed: int = SEED,
) -> Mapping[tuple[str, str], tuple[list[int], Float[np.ndarray, "case number"]]]:
    """Steps 1 and 2: (law, estimator) → numbers of masks, and correlations of every prompt and draw.

    Args:
        model: the model.
        prompts: prompts with answers.
        n_draws: draws of masks per prompt and law.
        n_reference: masks of the reference.
        largest: the largest number that is fitted.
        seed: of all masks.
    """
    inputs = as_samples(model, prompts)
    shape = model.cfg.n_layers, model.cfg.n_heads
    total = shape[0] * shape[1]
    block = block_size(total, "hadamard")
    priors: OfSample = head_priors(
        model, inputs, "gates", metric=METRICS["logit"], baseline="mean_image_tokens"
    )
    counts = {kind: numbers(kind, total, largest=largest) for kind in KINDS}
    found: dict[tuple[str, str], list[list[float]]] = {
        (k, e): [] for k in KINDS for e in (*ESTIMATORS, PRIOR)
    }
    for i in range(inputs.batch_size):
        generator = sample_generator(seed, i)
        runs = open_runs(
            model, inputs.select([i]), metric=METRICS["logit"], generator=sample_generator(seed, i, "check")
        )
        many = draw_design(max(n_reference // block, 2) * block, *shape, kind="hadamard", generator=generator)
        reference = solve(reduced(many, runs(many.masks).double().numpy()), "ols").theta.reshape(shape)
        prior = priors(i)
        for _ in range(n_draws):
            for kind in KINDS:
                design = draw_design(counts[kind][-1], *shape, kind=kind, generator=generator)
                r = correlations(design, runs(design.masks), counts[kind], reference, prior)
                for name, row in r.items():
                    found[kind, name].append(row)
    return {key: (counts[key[0]], np.array(rows)) for key, rows in found.items()}


def interaction_table(*, n: int = N, n_masks: int = 256, seed: int = SEED) -> str:
    """Step 4, in Markdown: means over prompts.

    Args:
        n: prompts.
        n_masks: masks per prompt.
        seed: of the masks.
    """
    truth = PlantedTruth.load(path(REDUNDANT) / TRUTH).first(n)
    model, family = HookedVLM.from_pretrained(REDUNDANT), truth.families[0]
    prompts = scenes.prompts("heldout", n, family=family, seed=TRUTH_SEED)
    exact = truth.interactions(family, index="banzhaf").values
    columns = [
        head_interactions(
            model, prompts, truth.players, n_masks=n_masks, design=law, seed=seed, progress=False
        )
        for law in ("antithetic", "iid")
    ]
    rows = []
    for k, (one, other) in enumerate(columns[0].pairs):
        true = exact[truth.players.index(one), truth.players.index(other)]
        means = [f"{found.interaction.values[:, k].mean():.3f}" for found in columns]
        rows.append([f"{one[0]}.{one[1]}, {other[0]}.{other[1]}", f"{true:.3f}", *means])
    header = ["heads", "exact (logit)", f"{n_masks} masks in pairs", f"{n_masks} independent masks"]
    return markdown_table(header, rows)


def report(
    *,
    n: int = N,
    n_draws: int = DRAWS,
    n_reference: int = REFERENCE,
    largest: int = LARGEST,
    seed: int = SEED,
) -> str:
    """Steps 1-4: both tables.

    Args:
        n: prompts.
        n_draws: draws of masks per prompt and law.
        n_reference: masks of the reference.
        largest: the largest number that is fitted.
        seed: of scenes and masks.
    """
    model = HookedVLM.from_pretrained(MODEL)
    prompts = scenes.prompts("heldout", n, family="main", seed=seed)
    found = dict(
        measured(model, prompts, n_draws=n_draws, n_reference=n_reference, largest=largest, seed=seed)
    )
    rows = []
    alone = np.median([found.pop((kind, PRIOR))[1][:, 0] for kind in KINDS])
    for (kind, name), (counts, r) in found.items():
        near = min(counts, key=lambda count: abs(count - SHOWN))
        cell = f"{np.median(r, axis=0)[counts.index(near)]:.3f} ({near})"
        rows.append([kind, NAMES.get(name, name), *(needed(counts, r, target) for target in TARGETS), cell])
    header = ["design", "estimator", *(f"masks to r = {target:g}" for target in TARGETS), "r at (masks)"]
    sentence = f"Median correlation of the gradients alone with the reference: {alone:.4f}. {n} prompts."
    return "\n\n".join((markdown_table(header, rows), sentence, interaction_table(n=n, seed=seed)))


def main(given: list[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.design_table", description=__doc__)
    parser.add_argument("--prompts", type=int, default=N, help="prompts")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of masks per prompt and law")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="masks of the reference")
    parser.add_argument("--largest", type=int, default=LARGEST, help="largest number of masks that is fitted")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of scenes and masks")
    given_options = parser.parse_args(given)
    options = {"n_draws": given_options.draws, "n_reference": given_options.reference}
    typer.echo(
        report(n=given_options.prompts, largest=given_options.largest, seed=given_options.seed, **options)
    )


if __name__ == "__main__":
    main()
