"""Choosing between the two engines for one sample."""

from typing import Any, Literal

import torch

from mmlens.engine.masked_runs import PrefixRuns
from mmlens.engine.plain import PlainRuns
from mmlens.engine.runs import MaskedRuns
from mmlens.engine.self_check import check_against_plain
from mmlens.errors import ConfigError, EngineNotExact
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM

Engine = Literal["auto", "prefix", "plain"]


def open_runs(
    model: HookedVLM,
    inputs: Inputs,
    *,
    metric: Metric,
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    engine: Engine = "auto",
    batch_size: int | None = None,
    compile: bool = False,
    self_check: bool = True,
    generator: torch.Generator,
) -> MaskedRuns:
    """Prepares one sample for runs under head masks.

    Args:
        model: a HookedVLM.
        inputs: one sample; padding is dropped.
        metric: what to measure.
        baseline: what ablated heads read.
        engine: ``prefix`` (shared prefix), ``plain`` (whole forward passes), or ``auto``: the prefix engine
            where it is exact. ``.engine`` of the answer tells which.
        batch_size: masks run together; None chooses.
        compile: see ``PrefixRuns``; of no effect on the plain path.
        self_check: whether to compare the prefix engine with the plain path on two random masks first.
        generator: source of those masks.

    Raises:
        EngineNotExact: ``prefix`` was asked for and is not exact here, or the self-check failed (under
            ``auto`` too: a disagreement is never passed over).
        AnswerError: the metric needs an answer that the sample lacks.
    """
    if engine not in ("auto", "prefix", "plain"):
        raise ConfigError(f"engine {engine!r} is unknown; known: auto, prefix, plain.")
    options: dict[str, Any] = {"metric": metric, "baseline": baseline, "batch_size": batch_size}
    sample = inputs.select([0]) if inputs.batch_size == 1 else inputs
    if engine == "plain":
        return PlainRuns(model, sample, **options)
    try:
        runs = PrefixRuns(model, sample, **options, compile=compile)
    except EngineNotExact:
        if engine == "prefix":
            raise
        return PlainRuns(model, sample, **options)
    if self_check:
        check_against_plain(runs, generator=generator)
    return runs
