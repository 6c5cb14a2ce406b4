"""Choosing how one sample's gates are run."""

from typing import Any, get_args

import torch

from mmlens.engine.gate_check import check_gates_against_plain
from mmlens.engine.gated_runs import GatedRuns
from mmlens.engine.gates import GateFunction
from mmlens.engine.opening import Engine
from mmlens.engine.plain_gates import PlainGates
from mmlens.errors import ConfigError, EngineNotExact
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric
from mmlens.model import HookedVLM


def open_gates(
    model: HookedVLM,
    inputs: Inputs,
    *,
    metric: Metric,
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    engine: str = "auto",
    self_check: bool = True,
    generator: torch.Generator,
) -> GateFunction:
    """Prepares one sample for runs under gates.

    Args:
        model: a HookedVLM.
        inputs: one sample; padding is dropped.
        metric: what to measure.
        baseline: what a closed head reads in place of every image token.
        engine: ``prefix`` (shared prefix), ``plain`` (whole forward passes), or ``auto``: the prefix engine where it
            is exact. ``.engine`` of the answer tells which.
        self_check: whether to compare the prefix engine with whole forward passes at one random point first.
        generator: source of that point.

    Raises:
        EngineNotExact: ``prefix`` was asked for and is not exact here, or the self-check failed (under ``auto`` too:
            a disagreement is never passed over).
        AnswerError: the metric needs an answer that the sample lacks.
        EmptyGroup: no text stands after an image.
    """
    if engine not in get_args(Engine):
        raise ConfigError(f"engine {engine!r} is unknown; known: {', '.join(get_args(Engine))}.")
    options: dict[str, Any] = {"metric": metric, "baseline": baseline}
    sample = inputs.select([0]) if inputs.batch_size == 1 else inputs
    if engine == "plain":
        return PlainGates(model, sample, **options)
    try:
        runs = GatedRuns(model, sample, **options)
    except EngineNotExact:
        if engine == "prefix":
            raise
        return PlainGates(model, sample, **options)
    if self_check:
        check_gates_against_plain(runs, generator=generator)
    return runs
