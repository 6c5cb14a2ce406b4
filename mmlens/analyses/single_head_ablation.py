"""Single-head ablation: what the answer loses when one head alone can no longer read the image.

1. Prepare the runs of each prompt under head masks.
2. Run clean, and once per head with that head alone ablated.
3. Score = clean minus ablated.

A head that another can stand in for scores low here, however much it carries: compare with
``head_attribution``. Source: the comparison of head attribution (arXiv 2509.17588).
"""

import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

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
from mmlens.errors import MMLensError
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from mmlens.result import REMOVAL_SIGN, HeadScoreResult


def single_head_ablation(
    model: HookedVLM,
    prompts: Any,
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    engine: Engine = "auto",
    batch_size: int | None = None,
    self_check: bool = True,
    seed: int = 0,
    first_sample: int = 0,
    progress: bool = True,
) -> HeadScoreResult:
    """Effect of ablating each head alone.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        metric: a name (see ``mmlens.metrics``), a metric, or a callable ``(logits, inputs) -> [batch]``.
        baseline: what an ablated head reads in place of every image token.
        engine: see ``mmlens.engine.open_runs``.
        batch_size: masks run together; None chooses.
        self_check: whether to compare the engine with the plain path first.
        seed: of the self-check's masks.
        first_sample: number of the first prompt in the set that it is taken from; its masks are those of that number.
        progress: whether to show a bar.

    Returns:
        Scores [sample, layer, head] in the metric's unit; positive = removing the head hurts the answer.

    Raises:
        AnswerError: the metric needs an answer that a prompt lacks.
        EngineNotExact: see ``mmlens.engine.open_runs``.
    """
    started = time.perf_counter()
    measure = as_metric(metric)
    checked = {"baseline": baseline, "self_check": self_check}
    opening: dict[str, Any] = {"metric": measure, "engine": engine, "batch_size": batch_size, **checked}
    inputs = as_samples(model, prompts, measure)
    masks = single_head_masks(model.cfg.n_layers, model.cfg.n_heads)
    scores, ran = [], Ran()
    with tqdm(total=inputs.batch_size * len(masks), desc="single heads", disable=not progress) as bar:
        for i in range(inputs.batch_size):
            generator = sample_generator(seed, first_sample + i, "check")
            try:
                given = ran.going_on(opening)
                runs = open_runs(model, inputs.select([i]), generator=generator, **given)
                values = runs(masks, progress=bar)
            except MMLensError as error:
                raise named(error, inputs, i) from error
            scores.append((values[0] - values[1:]).reshape(model.cfg.n_layers, model.cfg.n_heads).numpy())
            ran.note(runs)
    data = xr.Dataset(
        {"score": (("sample", "layer", "head"), np.stack(scores))},
        coords=sample_coords(model, inputs),
        attrs={"method": "single-head ablation", "unit": measure.unit, "sign": REMOVAL_SIGN},
    )
    settings = {"metric": measure.name, **checked, "baseline": baseline_name(baseline), **ran.settings}
    told = {"settings": settings, "seed": seed, **ran.info}
    info = run_info(model, inputs, seconds=time.perf_counter() - started, **told)
    return HeadScoreResult(data=data, info=info)


def single_head_masks(n_layers: int, n_heads: int) -> Bool[Tensor, "mask layer head"]:
    """The mask that keeps every head, then one mask per head that ablates it alone."""
    ablate = torch.eye(n_layers * n_heads, dtype=torch.bool).reshape(-1, n_layers, n_heads)
    return torch.cat([torch.ones(1, n_layers, n_heads, dtype=torch.bool), ~ablate])
