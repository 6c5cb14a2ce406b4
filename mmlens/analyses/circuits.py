"""Circuits: a set of heads, and whether it is enough, whether all of it is there, and whether all of it is needed.

With F(S) = (m(S) - m(none)) / (m(all) - m(none)), m(S) the metric when only the heads S may read the image, and C the
circuit:

1. Choose C by any head score: the top k, or the fewest whose scores reach a share of all positive ones.
2. On other prompts than those, per prompt: m of C, of all heads without C, of C with each head taken away or added, and
   of layer-matched random sets.
3. *Faithfulness* F(C): is it enough? *Completeness* 1 - F(all without C): is nothing of the effect left without it?
4. *Sets K of heads knocked out of both*: F(C without K) against F(all without K). A circuit that is complete behaves
   like the model under every such K; one that misses a backup head does not.
5. *Minimality*: what each head of C adds, F(C) - F(C without it), and the most it adds to any C without K, because
   heads that stand in for each other add nothing as long as all are there. Heads outside: F(C with it) - F(C).
6. Bootstrap over prompts. Shares are ratios of sums, so a prompt without an effect cannot blow them up.

Sources: Wang et al. 2022 (arXiv 2211.00593) for the three criteria and the random K; Kim et al. 2025 (arXiv 2509.17588)
for m(S) and completeness as in step 3. Ours: layer-matched controls, pooling and intervals.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.circuit_sets import HeadSet, as_head_sets, check_held_out, random_sets
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
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from mmlens.result import CircuitResult
from mmlens.result.resampling import percentile_interval

Array = np.ndarray


def circuit(
    model: HookedVLM,
    prompts: Any,
    sets: Mapping[str, HeadSet | Tensor | Array],
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    n_draws: int = 10,
    n_boot: int = 1000,
    allow_overlap: bool = False,
    engine: Engine = "auto",
    batch_size: int | None = None,
    self_check: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> CircuitResult:
    """Tests head sets on held-out prompts.

    Args:
        model: the model.
        prompts: prompts to test on; not those that the sets were chosen on.
        sets: name -> set, from :func:`choose_heads` or as ``Bool[layer, head]``.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what a head outside a set reads in place of every image token.
        n_draws: layer-matched random sets, and random K of step 4, per set.
        n_boot: bootstrap draws over prompts behind the intervals.
        allow_overlap: test although a set was chosen on some of these prompts.
        engine: see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses.
        self_check: whether to compare the engine with the plain path first.
        seed: of random sets, K and bootstrap.
        progress: whether to show a bar.

    Returns:
        Shares of the mean effect per set and prompt, with controls; see ``CircuitResult``.

    Raises:
        DesignError: a set is empty or everything, was chosen on these prompts, or the image does not help at all.
        ShapeError: a set is not ``[layer, head]`` of this model.
    """
    started = time.perf_counter()
    inputs = as_samples(model, prompts, measure := as_metric(metric))
    chosen = as_head_sets(sets, model.cfg)
    overlap = check_held_out(chosen, inputs, allow_overlap)
    if n_draws < 1 or n_boot < 1:
        raise DesignError(f"n_draws={n_draws}, n_boot={n_boot}: both must be at least 1, better 10 and 1000.")
    plans = [_Plan(one.mask, n_draws, seed, i) for i, one in enumerate(chosen.values())]
    opening = {"metric": measure, "baseline": baseline, "engine": engine, "batch_size": batch_size}
    values, ran = masked_values(
        model, inputs, [plan.masks for plan in plans], {**opening, "self_check": self_check}, seed, progress
    )  # 2
    effect = checked_effect(values[0][:, 0], values[0][:, 1])
    parts = [
        plan.parts(value, effect, n_boot, seed) for plan, value in zip(plans, values, strict=True)
    ]  # 3-6
    data = xr.concat(parts, dim=xr.DataArray(list(chosen), dims="group", name="group"))
    data["effect"] = ("sample", effect)
    data.attrs = {"metric": measure.name, "unit": measure.unit, "baseline": baseline_name(baseline)}
    info = run_info(
        model,
        inputs,
        seconds=time.perf_counter() - started,
        settings={
            **data.attrs,
            **ran.settings,
            "sets": {name: one.source for name, one in chosen.items()},
            "prompts_also_chosen_on": overlap,
            "n_draws": n_draws,
            "n_boot": n_boot,
        },
        **ran.info,
        seed=seed,
    )
    return CircuitResult(data=data.assign_coords(sample_coords(model, inputs)), info=info)


def check_draws(n_draws: int, n_boot: int) -> None:
    """Controls and intervals need something to be drawn.

    Raises:
        DesignError: nothing is.
    """
    if n_draws < 1 or n_boot < 1:
        raise DesignError(f"n_draws={n_draws}, n_boot={n_boot}: both must be at least 1, better 10 and 1000.")


def masked_values(
    model: HookedVLM,
    inputs: Inputs,
    masks: list[Bool[Tensor, "mask layer head"]],
    opening: Mapping[str, Any],
    seed: int,
    progress: bool,
) -> tuple[list[Float[Array, "sample mask"]], Ran]:
    """Step 2: the metric of every prompt under every mask of every list, each distinct mask run once.

    Args:
        model: the model.
        inputs: the prompts.
        masks: 1 = may read the image.
        opening: options of ``open_runs``.
        seed: of the self-check's masks.
        progress: whether to show a bar.
    """
    sizes = [len(one) for one in masks]
    distinct, where = torch.cat(masks).unique(dim=0, return_inverse=True)
    rows, ran = [], Ran()
    total = inputs.batch_size * len(distinct)
    with tqdm(total=total, desc="circuits", unit="run", disable=not progress) as bar:
        for i in range(inputs.batch_size):
            try:
                check = sample_generator(seed, i, "check")
                runs = open_runs(model, inputs.select([i]), generator=check, **ran.going_on(dict(opening)))
                rows.append(runs(distinct, progress=bar)[where].double())
            except MMLensError as error:
                raise named(error, inputs, i) from error
            ran.note(runs)
    return [part.numpy() for part in torch.stack(rows).split(sizes, dim=1)], ran


def checked_effect(
    none: Float[Array, " sample"], everything: Float[Array, " sample"]
) -> Float[Array, " sample"]:
    """What all heads together add, which must help on average.

    Raises:
        DesignError: it does not.
    """
    effect = everything - none
    if effect.mean() <= 1e-6 * max(1.0, float(np.abs(everything).mean())):
        raise DesignError(
            f"ablating every head changes the metric by {-effect.mean():+.3g} on average: the image does not help "
            "these answers, so shares of its effect mean nothing. Choose prompts that the model answers from the image."
        )
    return effect


def ratio_interval(
    gain: Float[Array, "sample *rest"], effect: Float[Array, " sample"], n_boot: int, seed: int
) -> Float[Array, "*rest bound"]:
    """Step 6: 95 % bootstrap interval over prompts of sum(gain) / sum(effect); NaN where that is undefined."""
    n = len(effect)
    draws = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=n_boot)
    below = draws @ effect
    if n < 2 or (below <= 0).any():
        return np.full((*gain.shape[1:], 2), np.nan)
    ratios = np.tensordot(draws, gain, axes=1) / below.reshape(-1, *[1] * (gain.ndim - 1))
    return percentile_interval(ratios)


class _Plan:
    """Masks that one circuit needs, and what their values mean."""

    def __init__(self, members: Bool[Tensor, "layer head"], n_draws: int, seed: int, number: int) -> None:
        self.members, self.n_draws = members, n_draws
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        everything = torch.ones_like(members)
        flipped = torch.eye(members.numel(), dtype=torch.bool).view(-1, *members.shape) ^ members
        random = random_sets(members, n_draws, generator)
        # a random half of the circuit, never all of it
        taken = (torch.rand(n_draws, *members.shape, generator=generator) < 0.5) & members
        taken[(taken == members).flatten(1).all(dim=1)] = False
        self.taken = taken
        without = (members & ~taken)[:, None] & ~torch.eye(members.numel(), dtype=torch.bool).view(
            1, -1, *members.shape
        )  # [draw, head, layer, head]: C without K and one more
        blocks = [
            torch.stack((~everything, everything, members, ~members)),
            flipped,
            random,
            ~random,
            members & ~taken,
            ~taken,
            without.flatten(0, 1),
        ]
        self.sizes = [len(block) for block in blocks]
        self.masks = torch.cat(blocks)

    def parts(
        self,
        values: Float[Array, "sample mask"],
        effect: Float[Array, " sample"],
        n_boot: int,
        seed: int,
    ) -> xr.Dataset:
        """Steps 3 to 6."""
        ends = np.cumsum(self.sizes)[:-1]
        fixed, flipped, keep, remove, inner, outer, less = np.split(values - values[:, :1], ends, axis=1)
        inside = self.members.numpy()
        adds = np.where(inside.ravel(), fixed[:, 2:3] - flipped, flipped - fixed[:, 2:3])
        adds = adds.reshape(-1, *inside.shape)
        gains = {"faithfulness": fixed[:, 2], "completeness": effect - fixed[:, 3]}
        drop = (inner[:, :, None] - less.reshape(len(values), self.n_draws, -1)).mean(axis=0) / effect.mean()
        most = np.abs(drop).max(axis=0).reshape(inside.shape)
        mean = effect.mean()
        found: dict[str, Any] = {
            "members": (("layer", "head"), inside.astype(int)),
            "adds": (("sample", "layer", "head"), adds / mean),
            "adds_interval": (("layer", "head", "bound"), ratio_interval(adds, effect, n_boot, seed)),
            "adds_most": (("layer", "head"), np.where(inside, most, np.nan)),
            "random_faithfulness": (("draw", "sample"), keep.T / mean),
            "random_completeness": (("draw", "sample"), (effect[:, None] - remove).T / mean),
            "knocked_circuit": (("draw", "sample"), inner.T / mean),
            "knocked_model": (("draw", "sample"), outer.T / mean),
        }
        for name, gain in gains.items():
            found[name] = ("sample", gain / mean)
            found[f"{name}_interval"] = ("bound", ratio_interval(gain, effect, n_boot, seed))
        return xr.Dataset(found)
