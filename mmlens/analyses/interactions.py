"""Do two heads stand in for each other? Pairwise interactions among chosen heads, from masked runs.

1. Draw masks in which each head reads the image with probability one half: complementary pairs, or independent masks.
2. Fit one product per pair of chosen heads. In a complementary pair every effect of odd order cancels in the sum of
   the two runs, so the products are fitted to the sums alone; of independent masks they are fitted jointly with
   all heads.
3. Interval per pair of heads: wild bootstrap over units, as for single heads.

The coefficient of a pair is what the second head adds when the first reads, minus what it adds when the first does
not, averaged over all other heads: the Banzhaf interaction index. Negative = either can stand in for the other;
positive = they need each other. Hadamard blocks are refused: within a block, products of columns equal other columns'
products.

Source: Banzhaf interaction as least-squares coefficient, Grabisch, Marichal & Roubens 2000; sums and differences of
a foldover, Box & Wilson 1951.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.design import MaskDesign, draw_design
from mmlens.analyses.fit import check_confidence, checked_values, solve
from mmlens.analyses.fit_units import Units, pair_members
from mmlens.analyses.ran import Ran
from mmlens.analyses.samples import (
    as_samples,
    baseline_name,
    named,
    run_info,
    sample_coords,
    sample_generator,
)
from mmlens.engine import Engine, open_runs
from mmlens.errors import DesignError, MMLensError
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from mmlens.result import InteractionResult
from mmlens.result.interactions import PAIR_COORDS

Head = tuple[int, int]
Array = np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFit:
    """Interactions of one prompt.

    Attributes:
        pairs: the two heads of each pair, as (layer, head).
        interaction: in the metric's unit; negative = either head can stand in for the other.
        interval: lower and upper end per pair, for one pair at a time.
        n_masks: masks fitted.
    """

    pairs: tuple[tuple[Head, Head], ...]
    interaction: Float[Array, " pair"]
    interval: Float[Array, "bound pair"]
    n_masks: int


def fit_interactions(
    design: MaskDesign,
    values: Float[Tensor, " mask"],
    heads: Sequence[Sequence[int]],
    *,
    confidence: float = 0.95,
    n_boot: int = 1000,
    generator: torch.Generator,
) -> PairFit:
    """Least-squares interactions of every pair of some heads.

    Args:
        design: the masks that were run, ``antithetic`` or ``iid`` with ``keep`` one half.
        values: the metric under each of them, in its unit.
        heads: the heads, as (layer, head).
        confidence: coverage of the interval of one pair.
        n_boot: bootstrap draws behind the interval.
        generator: source of the bootstrap's randomness.

    Raises:
        DesignError: the design cannot tell the pairs apart, the heads are not different heads of the model, or the
            metric never changes.
        NonFiniteError: a value is NaN or infinite.
    """
    pairs = check_interactions(design.n_masks, design.masks.shape[1:], heads, design.kind, design.keep)
    y = checked_values(design, values, "ols", confidence)
    n_heads = design.masks.shape[2]
    signs = design.masks.flatten(1).double().numpy() * 2 - 1
    first, second = (
        np.array([layer * n_heads + head for layer, head in column]) for column in zip(*pairs, strict=True)
    )
    products = signs[:, first] * signs[:, second] / 4  # a coefficient of x_i x_j in masks of 0 and 1
    if design.paired:
        one, other = pair_members(design)
        x, y = products[one] * np.sqrt(2), (y[one] + y[other]) / np.sqrt(2)
    else:
        x = np.concatenate([products, signs / 2], axis=1)
    units = Units.of(x - x.mean(0), y - y.mean(), base_leverage=1.0 / len(y), spare=1)
    solved = solve(units, "ols")
    n, interval = len(pairs), solved.interval(confidence, n_boot, generator)
    return PairFit(
        pairs=pairs, interaction=solved.theta[:n], interval=interval[:, :n], n_masks=design.n_masks
    )


def head_interactions(
    model: HookedVLM,
    prompts: Any,
    heads: Sequence[Sequence[int]],
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    n_masks: int = 512,
    design: Literal["antithetic", "iid"] = "antithetic",
    confidence: float = 0.95,
    seed: int = 0,
    first_sample: int = 0,
    engine: Engine = "auto",
    batch_size: int | None = None,
    self_check: bool = True,
    progress: bool = True,
) -> InteractionResult:
    """Interactions of every pair of some heads, while all heads of the model are masked at random.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        heads: two or more heads, as (layer, head); ``k`` heads make ``k (k - 1) / 2`` pairs.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what an ablated head reads in place of every image token, as in ``head_attribution``.
        n_masks: masks per prompt.
        design: ``antithetic`` or ``iid``.
        confidence: coverage of each pair's interval.
        seed: of masks and bootstrap; each prompt has its own stream.
        first_sample: number of the first prompt in the set that it is taken from; its masks are those of that number.
        engine: ``auto``, ``prefix`` or ``plain``; see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses.
        self_check: whether to compare the engine with the plain path on two random masks per prompt.
        progress: whether to show a bar.

    Returns:
        interaction [sample, pair] in the metric's unit, negative = either head can stand in for the other, with
        intervals.

    Raises:
        AnswerError, EngineNotExact, NonFiniteError: as ``head_attribution``.
        DesignError: as ``fit_interactions``, before any mask is run where that can be known.
    """
    started, measure = time.perf_counter(), as_metric(metric)
    shape = model.cfg.n_layers, model.cfg.n_heads
    check_confidence("ols", confidence)
    pairs = check_interactions(n_masks, shape, heads, design, 0.5)
    inputs = as_samples(model, prompts, measure)
    opening = {"baseline": baseline, "engine": engine, "batch_size": batch_size, "self_check": self_check}
    fits, ran = [], Ran()
    for i in tqdm(range(inputs.batch_size), desc="head interactions", unit="prompt", disable=not progress):
        masks, check = (sample_generator(seed, first_sample + i, use) for use in ("masks", "check"))
        try:
            runs = open_runs(
                model, inputs.select([i]), metric=measure, generator=check, **ran.going_on(opening)
            )
            drawn = draw_design(n_masks, *shape, kind=design, generator=masks)
            values = runs(drawn.masks)
            fits.append(fit_interactions(drawn, values, heads, confidence=confidence, generator=masks))
        except MMLensError as error:
            raise named(error, inputs, i) from error
        ran.note(runs)
    about = {"metric": measure.name, "baseline": baseline_name(baseline), "design": design}
    data = _dataset(fits, pairs, confidence).assign_coords(sample_coords(model, inputs))
    data = data.assign_attrs(about, unit=measure.unit)
    places = [[int(x) for x in head] for head in heads]
    settings = {**about, "heads": places, "n_masks": n_masks, "confidence": confidence}
    settings |= {"self_check": self_check, "n_runs": n_masks * inputs.batch_size, **ran.settings}
    told: dict[str, Any] = {**ran.info, "seed": seed}
    info = run_info(model, inputs, seconds=time.perf_counter() - started, settings=settings, **told)
    return InteractionResult(data=data, info=info)


def _dataset(fits: Sequence[PairFit], pairs: Sequence[tuple[Head, Head]], confidence: float) -> xr.Dataset:
    interval = np.stack([fit.interval.T for fit in fits])
    text = f"{confidence:.0%} bootstrap interval of the interaction over masks".replace("%", " %")
    places = np.array(pairs, dtype=int).reshape(len(pairs), 4)
    return xr.Dataset(
        {
            "interaction": (("sample", "pair"), np.stack([fit.interaction for fit in fits])),
            "interval": (("sample", "pair", "bound"), interval, {"description": text}),
            "n_masks": ("sample", np.array([fit.n_masks for fit in fits])),
        },
        coords={name: ("pair", places[:, i]) for i, name in enumerate(PAIR_COORDS)},
    )


def check_interactions(
    n_masks: int, shape: Sequence[int], heads: Sequence[Sequence[int]], kind: str, keep: float
) -> tuple[tuple[Head, Head], ...]:
    """Pairs of the heads, if such a design can tell them apart.

    Raises:
        DesignError: it cannot, or the heads are not different heads of the model.
    """
    n_layers, n_heads = shape
    places = [(int(layer), int(head)) for layer, head in heads]
    outside = [place for place in places if not (0 <= place[0] < n_layers and 0 <= place[1] < n_heads)]
    if outside or len(set(places)) < len(places) or len(places) < 2:
        raise DesignError(
            f"interactions need two or more different heads of {n_layers} layers with {n_heads} heads; got (layer, "
            f"head) {', '.join(map(str, places)) or 'none'}."
        )
    if kind not in ("antithetic", "iid") or keep != 0.5:
        raise DesignError(
            f"a design {kind!r} with keep={keep} does not tell products of heads apart; use design='antithetic' or "
            "'iid' with keep=0.5."
        )
    pairs = tuple(itertools.combinations(places, 2))
    per_run, unknowns = (2, len(pairs)) if kind == "antithetic" else (1, len(pairs) + n_layers * n_heads)
    if n_masks // per_run - 1 <= unknowns:
        raise DesignError(
            f"{n_masks} masks ({kind}) are too few for {unknowns} unknowns of {len(pairs)} pairs of heads; use at "
            f"least {per_run * (unknowns + 2)}, better four times as many."
        )
    return pairs
