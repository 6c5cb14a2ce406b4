"""Masking visual heads: what the answers lose when the top heads of a stage fall silent, or as many others.

1. Stages: thirds of the depth. In each, the k highest-scored heads (``top``), the k lowest-scored (``others``), and
   random heads, as many per layer as the top ones (``random``, several draws).
2. Four ways to silence a head at every position: ``uniform_causal`` (reads all keys that it may read alike),
   ``uniform_acausal`` (what the paper's code does: its scores become 0 after the causal mask, so that it sees the
   future too), ``zero`` and ``mean`` (its output is replaced).
3. Per sample the metric with and without; running means and bootstrap draws over a data set that passes by once.

Source: Bi et al. 2024 (arXiv 2412.18108); ``others`` as the lowest-scored, the layer-matching of random heads, three of
the four ways and the intervals are ours.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.depth_stages import depth_stages
from mmlens.analyses.random_heads import layer_matched_rankings, ranking_of
from mmlens.analyses.sample_stream import LeftOut, measured, samples_of
from mmlens.analyses.samples import streamed_info
from mmlens.analyses.streamed_moments import StreamedMoments
from mmlens.errors import ConfigError, InputError, ShapeError
from mmlens.inputs import Inputs
from mmlens.interventions import Intervention, Mean, Uniform, Zero
from mmlens.metrics import answer_ids, as_metric
from mmlens.model import HookedVLM
from mmlens.result import (
    AttributionResult,
    HeadMaskingResult,
    HeadScoreResult,
    PooledAttributionResult,
    ReferenceStatistics,
    VisualHeadsResult,
)

Semantics = Literal["uniform_causal", "uniform_acausal", "zero", "mean"]
SEMANTICS: tuple[Semantics, ...] = ("uniform_causal", "uniform_acausal", "zero", "mean")

Heads = list[tuple[int, int]]


def visual_head_masking(
    model: HookedVLM,
    prompts: Any,
    scores: Any,
    *,
    k: int | None = None,
    stages: Mapping[str, Iterable[int]] | None = None,
    semantics: Sequence[str] = SEMANTICS,
    metric: Any = "accuracy",
    statistics: ReferenceStatistics | None = None,
    n_draws: int = 10,
    n_boot: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    dataset: str = "prompts given",
    progress: bool = True,
) -> HeadMaskingResult:
    """The metric with top, other and random heads of each stage silenced.

    Args:
        model: the model.
        prompts: prompts with answers, as in :func:`mmlens.visual_heads`; best others than the scores came from.
        scores: which heads are the top ones: a ``VisualHeadsResult`` (its score), another score per head (its mean over
            samples), or an array [layer, head].
        k: heads to silence in each stage; None for a sixteenth of them (the paper's 20 of 320), at least one.
        stages: name → layers; None for ``early``, ``middle`` and ``late`` thirds.
        semantics: ways of silencing, of ``SEMANTICS``.
        metric: ``accuracy`` (the answer is the likeliest next token) or a metric of ``mmlens.metrics``.
        statistics: reference statistics of ``z``, whose mean ``mean`` then writes; None: the mean over the prompt's own
            tokens.
        n_draws: draws of random heads.
        n_boot: bootstrap draws.
        seed: of both.
        batch_size: prompts run together.
        dataset: which prompts these are, in words.
        progress: whether to show a bar.

    Returns:
        Values and drops [stage, group, condition] with intervals; positive drop = silencing hurts.

    Raises:
        ConfigError: k is more than half of a stage's heads, or an option is unknown.
        ShapeError: scores of another shape than [layer, head] of the model.
        InputError: no prompt, or none that could be measured.
    """
    started = time.perf_counter()
    ways = list(semantics)
    _check(ways, n_draws, batch_size)
    method, table = head_table(scores, model)
    chosen = _choices(table, stages, k, n_draws, seed)
    measure = _measure(model, chosen, ways, metric, statistics)
    moments = StreamedMoments(n_boot=n_boot, seed=seed)
    left_out = _run_through(model, prompts, measure, moments, batch_size, progress)
    name, unit = (
        ("accuracy", "1") if metric == "accuracy" else (as_metric(metric).name, as_metric(metric).unit)
    )
    about = {"metric": name, "unit": unit, "score": method, "dataset": dataset}
    mean_of = "the prompt's own tokens" if statistics is None else str(statistics.data.attrs["dataset"])
    data = _dataset(moments, chosen, ways, table.shape).assign_attrs(
        **about, k=chosen.k, n=moments.n, mean_of=mean_of, **left_out.attrs()
    )
    settings = {
        **about,
        "k": chosen.k,
        "semantics": ways,
        "n_draws": n_draws,
        "n_boot": n_boot,
        "mean_of": mean_of,
    }
    info = streamed_info(
        model, settings=settings, seconds=time.perf_counter() - started, batch_size=batch_size, seed=seed
    )
    return HeadMaskingResult(data=data, info=info)


def _run_through(
    model: HookedVLM,
    prompts: Any,
    measure: Callable[[Inputs], dict[str, np.ndarray]],
    moments: StreamedMoments,
    batch_size: int,
    progress: bool,
) -> LeftOut:
    """Feeds the moments; returns what could not be measured.

    Raises:
        InputError: nothing could.
    """
    left_out, remaining = LeftOut(), samples_of(model, prompts)
    total = len(prompts) if hasattr(prompts, "__len__") and not isinstance(prompts, Mapping) else None
    with tqdm(total=total, desc="visual head masking", unit="prompt", disable=not progress) as bar:
        while batch := list(itertools.islice(remaining, batch_size)):
            index, values, errors = measured(model, batch, measure)
            moments.update(np.array(index, np.int64), values)
            for i, error in errors.items():
                left_out.add(i, f"{type(error).__name__}: {error}")
            bar.update(len(batch))
    if not moments.n:
        why = next(iter(left_out.reasons.values()), "None was given.")
        raise InputError(f"no prompt could be measured. {why}")
    return left_out


def head_table(scores: Any, model: HookedVLM) -> tuple[str, Float[Tensor, "layer head"]]:
    """Name and values of a score per head.

    Raises:
        ShapeError: another shape than [layer, head] of the model.
    """
    name = "given scores"
    if isinstance(scores, VisualHeadsResult):
        name, values = f"visual heads: {scores.data.attrs['score']}", scores.data["score"].values
    elif isinstance(scores, HeadScoreResult):
        name, values = str(scores.data.attrs["method"]), scores.score.mean("sample").values
    elif isinstance(scores, AttributionResult):
        name, values = "head attribution", scores.theta.mean("sample").values
    elif isinstance(scores, PooledAttributionResult):
        name, values = "pooled head attribution", scores.theta.values
    else:
        values = scores
    table = torch.as_tensor(np.array(values, np.float64))
    expected = (model.cfg.n_layers, model.cfg.n_heads)
    if tuple(table.shape) != expected:
        raise ShapeError(
            f"scores have shape {list(table.shape)}; this model has [layer, head] = {list(expected)}."
        )
    return name, table


def silenced(way: str, heads: Heads, statistics: ReferenceStatistics | None = None) -> Intervention:
    """The intervention that silences heads at every position.

    Args:
        way: one of ``SEMANTICS``.
        heads: (layer, head) pairs.
        statistics: for ``mean``.

    Raises:
        ConfigError: an unknown way.
    """
    if way == "zero":
        return Zero(at="z", heads=heads)
    if way == "mean" and statistics is None:
        return Mean(at="z", heads=heads, baseline="prompt_tokens")
    if way == "mean":
        return Mean(at="z", heads=heads, baseline="dataset", statistics=statistics)
    if way == "uniform_causal":
        return Uniform(heads=heads, kind="causal")
    if way == "uniform_acausal":
        return Uniform(heads=heads, kind="acausal")
    raise ConfigError(f"semantics {way!r} is unknown; choose some of {', '.join(SEMANTICS)}.")


def _check(ways: list[str], n_draws: int, batch_size: int) -> None:
    if not ways or set(ways) - set(get_args(Semantics)):
        raise ConfigError(f"semantics={ways}: choose one or more of {', '.join(SEMANTICS)}.")
    if n_draws < 1 or batch_size < 1:
        raise ConfigError(f"n_draws={n_draws} and batch_size={batch_size} must be at least 1.")


# --- which heads


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choices:
    """Heads of every stage."""

    k: int
    top: dict[str, Heads]
    others: dict[str, Heads]
    random: dict[str, list[Heads]]


def _choices(
    table: Float[Tensor, "layer head"],
    stages: Mapping[str, Iterable[int]] | None,
    k: int | None,
    n_draws: int,
    seed: int,
) -> _Choices:
    n_layers, n_heads = table.shape
    layers = {name: sorted(set(own)) for name, own in (stages or depth_stages(n_layers)).items()}
    _check_stages(layers, n_layers)
    size = min(len(own) for own in layers.values()) * n_heads
    k = max(1, round(size / 16)) if k is None else k
    if not 1 <= k <= size // 2:
        raise ConfigError(
            f"k={k}: a stage has {size} heads, of which 1 to {size // 2} can be silenced and compared."
        )
    ranking, generator = ranking_of(table), torch.Generator().manual_seed(seed)
    top, others, random = {}, {}, {}
    for name, own in layers.items():
        inside = torch.isin(ranking // n_heads, torch.tensor(own))
        ordered = torch.cat([ranking[inside], ranking[~inside]])  # of all heads: the stage's come first
        drawn = layer_matched_rankings(ordered, n_heads, n_draws, generator=generator)[:, :k]
        top[name] = _pairs(ordered[:k], n_heads)
        others[name] = _pairs(ranking[inside][-k:], n_heads)
        random[name] = [_pairs(one, n_heads) for one in drawn]
    return _Choices(k=k, top=top, others=others, random=random)


def _check_stages(layers: Mapping[str, list[int]], n_layers: int) -> None:
    for name, own in layers.items():
        if not own or own[0] < 0 or own[-1] >= n_layers:
            raise ConfigError(f"stage {name!r} has layers {own}; give one or more of 0 to {n_layers - 1}.")


def _pairs(heads: Tensor, n_heads: int) -> Heads:
    return sorted((int(head) // n_heads, int(head) % n_heads) for head in heads)


# --- what they are worth


def _measure(
    model: HookedVLM, chosen: _Choices, ways: list[str], metric: Any, statistics: ReferenceStatistics | None
) -> Callable[[Inputs], dict[str, np.ndarray]]:
    """A function from prepared samples to the metric, clean and with heads silenced."""
    n_draws = len(next(iter(chosen.random.values())))

    def measure(inputs: Inputs) -> dict[str, np.ndarray]:
        answer_ids(inputs)  # a sample without answer is refused before anything runs
        ready = model.encode_images(inputs)
        known: dict[tuple[str, tuple[tuple[int, int], ...]], np.ndarray] = {}

        def value(way: str, heads: Heads) -> np.ndarray:
            key = (way, tuple(heads))
            if key not in known:
                known[key] = _value(model, ready, metric, [silenced(way, heads, statistics)])
            return known[key]

        clean = _value(model, ready, metric, [])
        random = np.array(
            [
                [[value(way, own[draw]) for way in ways] for own in chosen.random.values()]
                for draw in range(n_draws)
            ]
        )  # [draw, stage, condition, sample]
        sets = (chosen.top, chosen.others)
        fixed = np.array([[[value(way, one[name]) for way in ways] for one in sets] for name in chosen.top])
        values = np.concatenate(
            [fixed, random.mean(axis=0)[:, None]], axis=1
        )  # [stage, group, condition, sample]
        values, random = np.moveaxis(values, -1, 0), np.moveaxis(random, -1, 0)
        return {
            "clean": clean,
            "value": values,
            "drop": clean[:, None, None, None] - values,
            "random": random,
        }

    return measure


def _value(
    model: HookedVLM, inputs: Inputs, metric: Any, interventions: list[Intervention]
) -> Float[np.ndarray, " sample"]:
    with torch.no_grad():
        logits = model.run(inputs, interventions, logits_pos="final").logits
    if isinstance(metric, str) and metric == "accuracy":
        return (logits[:, -1].argmax(-1) == answer_ids(inputs).to(logits.device)).double().cpu().numpy()
    return as_metric(metric)(logits, inputs).double().cpu().numpy()


def _dataset(
    moments: StreamedMoments, chosen: _Choices, ways: list[str], shape: tuple[int, ...]
) -> xr.Dataset:
    cell = ("stage", "group", "condition")
    found: dict[str, Any] = {}
    for name in ("value", "drop"):
        found[name] = (cell, moments.mean(name))
        found[f"{name}_interval"] = ((*cell, "bound"), moments.interval(name))
    found["random_value"] = (("draw", "stage", "condition"), moments.mean("random"))
    found["clean"] = ((), moments.mean("clean"))
    found["clean_interval"] = (("bound",), moments.interval("clean"))
    masked = [
        [
            _share([chosen.top[name]], shape),
            _share([chosen.others[name]], shape),
            _share(chosen.random[name], shape),
        ]
        for name in chosen.top
    ]
    found["masked"] = (("stage", "group", "layer", "head"), np.array(masked))
    names = {"stage": list(chosen.top), "group": ["top", "others", "random"], "condition": ways}
    return xr.Dataset(found, coords={name: np.array(labels, dtype=object) for name, labels in names.items()})


def _share(sets: list[Heads], shape: tuple[int, ...]) -> Float[np.ndarray, "layer head"]:
    """In which share of the sets each head is."""
    counts = np.zeros(shape)
    for heads in sets:
        for layer, head in heads:
            counts[layer, head] += 1 / len(sets)
    return counts
