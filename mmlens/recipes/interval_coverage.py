"""How often the intervals of head attribution hold the truth: ``python -m mmlens.recipes.interval_coverage``.

1. Per prompt, what the intervals should hold: least squares on many Hadamard blocks, or on a planted model the exact
   Banzhaf values, which regression on head masks estimates.
2. Per prompt and law, draw masks again and again; fit the first few and all of them by every estimator.
3. Coverage: the share of heads whose 95 % interval holds the truth. A reference has an error of its own: its half width
   is added in squares to that of the interval in question. What it would be if the reference were exact is told, too.
4. The same of whole runs of the analysis with its defaults, which stop when halves agree.

Prints two tables in Markdown: a trained model, and one whose heads stand in for each other. Brackets: 95 % bootstrap
interval over prompts, which are the units of evidence; the heads of one fit err together.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Float

from mmlens.analyses.design import DesignKind, MaskDesign, block_size, draw_design
from mmlens.analyses.fit import fit_heads
from mmlens.analyses.head_prior import head_priors
from mmlens.analyses.samples import as_samples, sample_generator
from mmlens.analyses.surrogate import SurrogatePlan, fit_surrogate
from mmlens.datasets import scenes
from mmlens.engine import MaskedRuns, open_runs
from mmlens.inputs import Prompt
from mmlens.metrics import METRICS
from mmlens.model import HookedVLM
from mmlens.pretrained import path
from mmlens.recipes.markdown import markdown_table
from mmlens.recipes.planted_truth import SEED as TRUTH_SEED
from mmlens.recipes.planted_truth import TRUTH
from mmlens.result import PlantedTruth
from mmlens.result.resampling import percentile_interval, resampled_means

Array = np.ndarray
Heads = Float[Array, "layer head"]

MODEL, FAMILIES = "scenes", ("main", "colour", "count", "existence")
PLANTED, PLANTED_FAMILIES = "planted-redundant", ("main", "colour")
PER_FAMILY, REPEATS, SEED = 2, 6, 0
REFERENCE, SIZES = 6048, (192, 384)
"""Masks of the reference, and the numbers fitted; for other models, the nearest whole blocks."""
STRONGEST = 8
KINDS: tuple[DesignKind, ...] = ("iid", "antithetic", "hadamard")
ESTIMATORS = {
    "ols": ("ols", False),
    "ridge": ("ridge", False),
    "lasso": ("lasso", False),
    "auto": ("auto", False),
    "best": ("best", False),
    "prior_ridge": ("prior_ridge", True),
    "auto, with gradients": ("auto", True),
    "best, with gradients": ("best", True),
}
"""Name in the table → estimator, and whether it gets gradients of gates as a prior."""
DEFAULTS = ("defaults", "until halves agree")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What the intervals of one prompt should hold.

    Attributes:
        theta: the truth, or an estimate from many masks.
        half: half width of its own 95 % interval; 0 if it is exact.
    """

    theta: Heads
    half: Heads


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """Whether heads were covered, of one law and estimator: number of masks → one entry a prompt.

    Attributes:
        covered: share of heads, the reference's error counted in.
        strongest: the same of the heads with the largest effects alone, at most STRONGEST; none whose effect is 0.
        plain: share of heads, the reference taken for exact.
        masks: masks that were fitted.
    """

    covered: dict[int, list[float]] = field(default_factory=dict)
    strongest: dict[int, list[float]] = field(default_factory=dict)
    plain: dict[int, list[float]] = field(default_factory=dict)
    masks: list[int] = field(default_factory=list)


def held(interval: Float[Array, "bound layer head"], reference: Reference) -> Float[Array, "kind layer head"]:
    """Step 3: whether each head's interval holds the reference, its error counted in and not."""
    low, high = interval
    half = (high - low) / 2
    slack = np.hypot(half, reference.half) - half
    truth = reference.theta
    both = [(low - extra <= truth) & (truth <= high + extra) for extra in (slack, 0.0 * slack)]
    return np.stack(both).astype(float)


def measured_reference(runs: MaskedRuns, n_masks: int, generator: torch.Generator) -> Reference:
    """Step 1, of a model whose truth is not known."""
    total = runs.shape[0] * runs.shape[1]
    step = block_size(total, "hadamard")
    design = draw_design(max(n_masks // step, 2) * step, *runs.shape, kind="hadamard", generator=generator)
    fit = fit_heads(design, runs(design.masks), estimator="ols", generator=generator)
    return Reference(theta=fit.theta, half=(fit.interval[1] - fit.interval[0]) / 2)


def coverage_of(
    model: HookedVLM,
    prompts: Sequence[Prompt],
    known: Sequence[Reference] | None = None,
    *,
    repeats: int = REPEATS,
    n_reference: int = REFERENCE,
    seed: int = SEED,
) -> Mapping[tuple[str, str], Tally]:
    """Steps 1-4: (law, estimator) → coverage of every prompt.

    Args:
        model: the model.
        prompts: prompts with answers.
        known: the truth of each prompt, where it is known.
        repeats: draws of masks per prompt and law.
        n_reference: masks of the reference, where the truth is not known.
        seed: of all masks.
    """
    inputs = as_samples(model, prompts)
    priors = head_priors(model, inputs, "gates", metric=METRICS["logit"], baseline="mean_image_tokens")
    tallies = {(kind, name): Tally() for kind in KINDS for name in ESTIMATORS} | {DEFAULTS: Tally()}
    for i in range(inputs.batch_size):
        generator, check = sample_generator(seed, i), sample_generator(seed, i, "check")
        runs = open_runs(model, inputs.select([i]), metric=METRICS["logit"], generator=check)
        reference = known[i] if known else measured_reference(runs, n_reference, generator)
        found: dict[tuple[tuple[str, str], int], list[Array]] = {}
        for _ in range(repeats):
            for key, n_masks, interval in _intervals(runs, priors(i), generator):
                if key == DEFAULTS:
                    tallies[key].masks.append(n_masks)
                    n_masks = 0
                found.setdefault((key, n_masks), []).append(held(interval, reference))
        size = np.abs(reference.theta).ravel()
        top = np.argsort(-size, kind="stable")[: min(STRONGEST, int((size > 0).sum()))]
        for (key, n_masks), each in found.items():
            share = np.mean(each, axis=0).reshape(2, -1)  # over repeats
            tally = tallies[key]
            tally.covered.setdefault(n_masks, []).append(float(share[0].mean()))
            tally.strongest.setdefault(n_masks, []).append(float(share[0, top].mean()))
            tally.plain.setdefault(n_masks, []).append(float(share[1].mean()))
    return tallies


def _intervals(
    runs: MaskedRuns, prior: Heads | None, generator: torch.Generator
) -> Iterator[tuple[tuple[str, str], int, Float[Array, "bound layer head"]]]:
    """Steps 2 and 4: law and estimator, masks fitted, interval; masks of one draw serve every estimator."""
    total = runs.shape[0] * runs.shape[1]
    for kind in KINDS:
        step = block_size(total, kind)
        sizes = [max(round(size / step), 1) * step for size in SIZES]
        design = draw_design(sizes[-1], *runs.shape, kind=kind, generator=generator)
        values = runs(design.masks)
        for nominal, size in zip(SIZES, sizes, strict=True):
            part: MaskDesign = design.subset(torch.arange(size))
            for name, (estimator, helped) in ESTIMATORS.items():
                options: dict[str, Any] = {"estimator": estimator, "prior": prior if helped else None}
                fit = fit_heads(part, values[:size], generator=generator, **options)
                yield (kind, name), nominal, fit.interval
    found = fit_surrogate(runs, SurrogatePlan(n_heldout=3), generator=generator)
    yield DEFAULTS, found.fit.n_masks, found.fit.interval


def cell(shares: Sequence[float], seed: int = SEED) -> str:
    """Mean over prompts, and its 95 % bootstrap interval."""
    values = np.array(shares)
    low, high = percentile_interval(resampled_means(values[:, None], 2000, seed))[0]
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def table(tallies: Mapping[tuple[str, str], Tally]) -> str:
    """One model, in Markdown, and a sentence on what the reference's own error does."""
    header = ["design", "estimator", *(f"all heads, {size} masks" for size in SIZES)]
    header += [f"strongest heads, {size} masks" for size in SIZES]
    rows = []
    for (kind, name), tally in tallies.items():
        if (kind, name) != DEFAULTS:
            cells = [cell(tally.covered[size]) for size in SIZES]
            rows.append([kind, name, *cells, *(f"{np.mean(tally.strongest[size]):.3f}" for size in SIZES)])
    whole = tallies[DEFAULTS]
    worst = max(
        np.mean(tally.covered[size]) - np.mean(tally.plain[size])
        for tally in tallies.values()
        for size in tally.covered
    )
    sentence = (
        f"The analysis with its defaults ({min(whole.masks)} to {max(whole.masks)} masks): {cell(whole.covered[0])}, "
        f"strongest heads {np.mean(whole.strongest[0]):.3f}; {len(whole.covered[0])} prompts, "
        f"{len(whole.masks)} runs. Left out of account, the reference's own error would lower no entry for "
        f"all heads by more than {worst:.3f}."
    )
    return f"{markdown_table(header, rows)}\n\n{sentence}"


def planted_references(family: str, n: int) -> list[Reference]:
    """Exact Banzhaf values of the first prompts of a family."""
    truth = PlantedTruth.load(path(PLANTED) / TRUTH).first(n)
    found = []
    for values in truth.player_values(family, index="banzhaf").values:
        theta = np.zeros(truth.shape)
        theta[tuple(zip(*truth.players, strict=True))] = values
        found.append(Reference(theta=theta, half=np.zeros(truth.shape)))
    return found


def report(
    *, n: int = PER_FAMILY, repeats: int = REPEATS, n_reference: int = REFERENCE, seed: int = SEED
) -> str:
    """Both tables.

    Args:
        n: prompts of each family.
        repeats: draws of masks per prompt and law.
        n_reference: masks of the reference.
        seed: of scenes and masks.
    """
    model = HookedVLM.from_pretrained(MODEL)
    prompts = [one for name in FAMILIES for one in scenes.prompts("heldout", n, family=name, seed=seed)]
    options: dict[str, Any] = {"repeats": repeats, "n_reference": n_reference, "seed": seed}
    first = table(coverage_of(model, prompts, **options))
    model = HookedVLM.from_pretrained(PLANTED)
    prompts, known = [], []
    for name in PLANTED_FAMILIES:
        prompts += scenes.prompts("heldout", n, family=name, seed=TRUTH_SEED)
        known += planted_references(name, n)
    second = table(coverage_of(model, prompts, known, **options))
    return f"*`{MODEL}`*\n\n{first}\n\n*`{PLANTED}`*\n\n{second}"


def main(given: list[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.interval_coverage", description=__doc__)
    parser.add_argument("--prompts", type=int, default=PER_FAMILY, help="prompts of each family")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="draws of masks per prompt and law")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="masks of the reference")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of scenes and masks")
    options = parser.parse_args(given)
    typer.echo(
        report(n=options.prompts, repeats=options.repeats, n_reference=options.reference, seed=options.seed)
    )


if __name__ == "__main__":
    main()
