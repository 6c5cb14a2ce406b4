"""Attribution over head gates: how much a head's reading of the image is worth, from gradients alone.

1. Give every head a gate g. Where text after the image reads, the head's output becomes
   ``g · z(image) + (1 − g) · z(baseline)``: at g = 1 the model as it is, at g = 0 what ``HeadMask`` makes of an ablated
   head.
2. Run the prompt with all gates at one value and differentiate the metric by each gate: at 1 (``kept``), which
   approximates ablating heads one at a time; at 0 (``ablated``), which approximates restoring them one at a time; or
   at points between (``path``).
3. For ``path``, integrate the gradients over the common value of the gates from 0 to 1 (Gauss-Legendre). The heads'
   values then sum to the metric with all gates open minus the metric with all closed.
4. Assemble the result; measure both ends, so that the sum can be checked.

Gates change only what text after the image reads, so steps 2 and 3 run over one shared prefix per prompt where that is
exact (``mmlens.engine.GatedRuns``), and by whole forward passes elsewhere.

Source: integrated gradients of Sundararajan et al. 2017 (arXiv 1703.01365) over gates on heads, as Michel et al. 2019
(arXiv 1905.10650) differentiate by head masks at 1. Gates on what text reads from the image, and the baselines, are
those of head attribution (Kim et al. 2025, arXiv 2509.17588); joining them is ours. The integral along the diagonal is
the Aumann-Shapley value of the gated model; it is the Shapley value where the metric is multilinear in the gates.
"""

import time
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.gradients import weights_held
from mmlens.analyses.patching_statistics import CORRECTIONS, patching_statistics
from mmlens.analyses.samples import (
    as_samples,
    baseline_name,
    named,
    run_info,
    sample_coords,
    sample_generator,
)
from mmlens.engine import Engine
from mmlens.engine.gates import GateFunction
from mmlens.engine.open_gates import open_gates
from mmlens.errors import ConfigError, DesignError, InterventionError, MetricError, MMLensError
from mmlens.interventions import HEAD_BASELINES, HeadBaseline, ImageKV
from mmlens.metrics import Metric, as_metric, check_finite
from mmlens.model import HookedVLM
from mmlens.result import PatchingResult, RunInfo

GatePoint = Literal["path", "kept", "ablated"]

_METHODS = {
    "path": "integrated gradients over gates",
    "kept": "attribution patching with gates",
    "ablated": "attribution patching with gates",
}


def gate_attribution(
    model: HookedVLM,
    prompts: Any,
    *,
    metric: Any = "logit",
    baseline: HeadBaseline | ImageKV = "mean_image_tokens",
    at: GatePoint = "path",
    steps: int = 8,
    batch_size: int = 8,
    engine: str = "auto",
    self_check: bool = True,
    progress: bool = True,
) -> PatchingResult:
    """Attributes each prompt's answer to the heads that carry the image into the text, by gradients of gates.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        metric: a name (see ``mmlens.metrics``), a metric, or a differentiable callable ``(logits, inputs) -> [batch]``.
        baseline: what a closed head reads in place of every image token, as in ``HeadMask``.
        at: ``path`` integrates from all heads closed to all open; ``kept`` takes the gradient with all open (to be
            compared with single-head ablation), ``ablated`` with all closed.
        steps: points of the integral (``path`` only).
        batch_size: points run together; memory grows with it, not with ``steps``.
        engine: ``prefix`` (only text after the image is computed, over a shared prefix), ``plain`` (whole forward
            passes), or ``auto``: the prefix engine where it is exact. ``info.attn_implementation`` tells which it was.
        self_check: whether to compare the prefix engine with a whole forward pass first, values and slopes, at one
            random point of the first prompt that it runs; that pass needs the memory of ``plain``.
        progress: whether to show a bar.

    Returns:
        effect [sample, layer, head] in the metric's unit, positive = keeping the head helps the answer; clean = all
        gates open, corrupt = all closed. With ``path`` the effects of a sample sum to clean minus corrupt, up to the
        error of the integral, which is in the variable ``gap``. Direction ``noise`` for ``kept``, else ``denoise``.

    Raises:
        AnswerError: the metric needs an answer that a prompt lacks.
        ConfigError: ``at``, ``steps``, ``batch_size`` or ``engine`` is not possible.
        EmptyGroup: a prompt has no image, or no text after it.
        InterventionError: the baseline is unknown.
        DesignError: closing all heads does not change the metric of some prompt.
        MetricError: the metric is not differentiable.
        EngineNotExact: ``prefix`` was asked for and is not exact here, or the self-check failed.

    Source: see the top of this file.
    """
    started = time.perf_counter()
    _check_options(at, steps, batch_size, baseline, engine)
    measure = as_metric(metric)
    inputs = as_samples(model, prompts, measure)
    points, weights = nodes(steps) if at == "path" else (np.array([float(at == "kept")]), np.ones(1))
    effects, clean, corrupt, engines = [], [], [], []
    for i in tqdm(range(inputs.batch_size), desc=_METHODS[at], unit="prompt", disable=not progress):
        check = self_check and "prefix" not in engines
        try:
            with weights_held(model):
                gates = open_gates(
                    model, inputs.select([i]), metric=measure, baseline=baseline, engine=engine,
                    self_check=check, generator=sample_generator(0, i, "check"),
                )  # fmt: skip
                effects.append(_gradient(gates, points, weights, batch_size).numpy())  # 1-3
                ends = _measured(gates, np.array([1.0, 0.0])).tolist()
            if ends[0] == ends[1]:
                raise DesignError(
                    "closing every head leaves the metric as it was; nothing is to be shared out."
                )
        except MMLensError as error:
            raise named(error, inputs, i) from error
        clean.append(ends[0])
        corrupt.append(ends[1])
        engines.append(gates.engine)
    settings = {"metric": measure.name, "baseline": baseline_name(baseline), "at": at, "steps": len(points)}
    info = run_info(
        model, inputs, seconds=time.perf_counter() - started, settings={**settings, "self_check": self_check},
        engine=", ".join(sorted(set(engines))), batch_size=batch_size,
    )  # fmt: skip
    both = np.array(clean), np.array(corrupt)
    return _result(np.stack(effects), both, at, measure, info, sample_coords(model, inputs))  # 4


def _result(
    effects: Float[np.ndarray, "sample layer head"],
    ends: tuple[np.ndarray, np.ndarray],
    at: GatePoint,
    metric: Metric,
    info: RunInfo,
    coords: dict[str, Any],
) -> PatchingResult:
    """The result; for ``path`` with ``gap``, what a sample's effects sum to beyond clean − corrupt."""
    gap = effects.sum((1, 2)) - (ends[0] - ends[1])
    result = PatchingResult.from_arrays(
        effect=effects,
        clean=ends[0],
        corrupt=ends[1],
        method=_METHODS[at],
        site="head gates",
        direction="noise" if at == "kept" else "denoise",
        metric=metric.name,
        unit=metric.unit,
        info=info,
        statistics=patching_statistics(effects / (ends[0] - ends[1])[:, None, None]),
        coords=coords,
        correction=CORRECTIONS["holm"],
        baseline=str(info.settings["baseline"]),
    )
    if at != "path":
        return result
    about = {"description": "sum of the effects minus (clean − corrupt): error of the integral"}
    return PatchingResult(data=result.data.assign(gap=("sample", gap, about)), info=info)


def nodes(steps: int) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """Points and weights that integrate over [0, 1] (Gauss-Legendre: exact for polynomials to degree 2 steps − 1)."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1) / 2, weights / 2


def _check_options(
    at: str, steps: int, batch_size: int, baseline: HeadBaseline | ImageKV, engine: str
) -> None:
    if at not in _METHODS:
        raise ConfigError(f"at={at!r} is unknown; known: {', '.join(_METHODS)}.")
    if steps < 1 or batch_size < 1:
        raise ConfigError(f"steps={steps}, batch_size={batch_size}: at least 1 of each is needed.")
    if engine not in get_args(Engine):
        raise ConfigError(f"engine {engine!r} is unknown; known: {', '.join(get_args(Engine))}.")
    if not isinstance(baseline, ImageKV) and baseline not in HEAD_BASELINES:
        raise InterventionError(
            f"baseline {baseline!r} is unknown; known: {', '.join(HEAD_BASELINES)}, or an ImageKV."
        )


# --- 2 and 3: one sample


def _gradient(
    gates: GateFunction,
    points: Float[np.ndarray, " step"],
    weights: Float[np.ndarray, " step"],
    batch_size: int,
) -> Float[Tensor, "layer head"]:
    """Weighted sum over points of the gradient by every gate, in float64."""
    total = torch.zeros(gates.shape, dtype=torch.float64)
    for start in range(0, len(points), batch_size):
        part = slice(start, start + batch_size)
        with torch.enable_grad():
            at = _common(gates, points[part]).requires_grad_(True)
            value = gates(at)
            if not value.requires_grad:
                raise MetricError(f"metric {gates.metric.name!r} is not differentiable.")
            (slope,) = torch.autograd.grad(value.sum(), at)
        check_finite(value.detach(), gates.metric)
        total += einsum(torch.from_numpy(weights[part]), slope.double().cpu(), "n, n l h -> l h")
    return total


@torch.no_grad()
def _measured(gates: GateFunction, points: Float[np.ndarray, " point"]) -> Float[Tensor, " point"]:
    """The metric with all gates at each of some values."""
    return check_finite(gates(_common(gates, points)), gates.metric).double().cpu()


def _common(gates: GateFunction, points: Float[np.ndarray, " point"]) -> Float[Tensor, "point layer head"]:
    """All gates of a point at one value."""
    column = torch.from_numpy(points).to(gates.model.device, gates.dtype)[:, None, None]
    return column.expand(-1, *gates.shape).contiguous()
