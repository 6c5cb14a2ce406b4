"""Gates over a shared prefix: values and slopes are those of whole forward passes, in every family."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from mmlens.engine import GatedRuns, PrefixRuns
from mmlens.engine.plain_gates import PlainGates
from mmlens.errors import AnswerError, EmptyGroup, EngineNotExact, InterventionError, ShapeError
from mmlens.inputs import Prompt
from mmlens.interventions import HEAD_BASELINES, ImageKV
from mmlens.metrics import METRICS, as_metric
from mmlens.model import HookedVLM
from tests.engine.build import prompt, random_masks, rng, tiny_model, tiny_sample, with_answers
from tests.engine.test_families import FAMILIES, REFUSED
from tests.zoo import VARIANTS

LOGIT = as_metric("logit")
RUN = [name for name in FAMILIES if name not in REFUSED]
BASELINES = (*HEAD_BASELINES, "given")
FLOAT = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Allowed difference, relative to the largest of what is compared (at least 1)."""


@cache
def family(name: str, dtype: torch.dtype, n_images: int = 1) -> tuple[HookedVLM, Any]:
    model = HookedVLM.from_hf(VARIANTS[name].model(seed=1)).to(dtype=dtype)
    inputs = model.prepare(VARIANTS[name].batch(n_images=n_images, n_after=(5,), seed=2))
    return model, model.encode_images(with_answers(inputs).to(dtype=dtype))


def baseline_of(model: HookedVLM, name: str) -> Any:
    shape = model.cfg.n_layers, model.cfg.n_key_value_heads, model.cfg.d_head
    given = ImageKV(k=torch.randn(shape, generator=rng(6)), v=torch.randn(shape, generator=rng(7)))
    return given if name == "given" else name


def both(model: HookedVLM, inputs: Any, **options: Any) -> tuple[GatedRuns, PlainGates]:
    options = {"metric": LOGIT, "baseline": "mean_image_tokens"} | options
    options["baseline"] = baseline_of(model, options["baseline"])
    return GatedRuns(model, inputs, **options), PlainGates(model, inputs, **options)


def points(runs: Any, n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *runs.shape, generator=rng(seed), dtype=torch.float64).to(runs.dtype)


def values_and_slopes(runs: Any, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gates = at.clone().requires_grad_(True)
    values = runs(gates)
    return values.detach(), torch.autograd.grad(values.sum(), gates)[0]


def check(model: HookedVLM, inputs: Any, least: float = 1e-3, **options: Any) -> None:
    runs, plain = both(model, inputs, **options)
    at = points(runs)
    for fast, slow in zip(values_and_slopes(runs, at), values_and_slopes(plain, at), strict=True):
        assert float((slow - slow.flatten()[0]).abs().max()) > least  # gates matter at all
        difference = float((fast - slow).abs().max()) / max(1.0, float(slow.abs().max()))
        assert difference <= FLOAT[model.dtype]


# --- equal to whole forward passes


def test_covers_the_families() -> None:
    assert len({VARIANTS[name].family for name in RUN}) >= 12


@pytest.mark.parametrize("name", RUN)
def test_equals_whole_runs(name: str) -> None:
    check(*family(name, torch.float32))
    for baseline in BASELINES:
        check(*family(name, torch.float64), baseline=baseline)


@pytest.mark.parametrize("name", RUN)
def test_equals_whole_runs_with_several_images(name: str) -> None:
    check(*family(name, torch.float64, n_images=2))


@pytest.mark.parametrize("name", RUN)
def test_slopes_are_finite_differences_of_whole_runs(name: str) -> None:
    """Central differences of whole forward passes in float64, at a point and for gates drawn at random."""
    model, inputs = family(name, torch.float64)
    runs, plain = both(model, inputs)
    at, h = points(runs, 1), 1e-4
    slopes = values_and_slopes(runs, at)[1].flatten()
    chosen = torch.randperm(slopes.numel(), generator=rng(3))[:3].tolist()
    steps = torch.zeros(2 * len(chosen), slopes.numel(), dtype=torch.float64)
    for i, gate in enumerate(chosen):
        steps[2 * i, gate], steps[2 * i + 1, gate] = h, -h
    with torch.no_grad():
        up, down = plain(at + steps.view(-1, *runs.shape)).view(-1, 2).unbind(1)
    assert float(slopes[chosen].abs().max()) > 1e-4
    torch.testing.assert_close(slopes[chosen], (up - down) / (2 * h), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("n_kv", [4, 2, 1])
def test_grouped_heads(n_kv: int, baseline: str) -> None:
    model = tiny_model(n_kv=n_kv)
    check(model, tiny_sample(model), baseline=baseline)


@pytest.mark.parametrize("n_before", [0, 1, 5])
@pytest.mark.parametrize(("n_after", "n_images"), [(6, 1), (1, 1), (4, 2)])
def test_every_shape_of_prompt(n_before: int, n_after: int, n_images: int) -> None:
    model = tiny_model(n_kv=2)
    check(model, tiny_sample(model, n_before, n_after, n_images))


@pytest.mark.parametrize("name", [name for name in METRICS if name != "margin"])
def test_every_metric(name: str) -> None:
    model = tiny_model()
    check(model, tiny_sample(model), metric=as_metric(name), least=1e-4)


def test_a_callable_as_metric() -> None:
    model = tiny_model()
    check(model, tiny_sample(model), metric=as_metric(lambda logits, inputs: logits[:, -1].std(dim=-1)))


@pytest.mark.parametrize("baseline", BASELINES)
def test_capped_scores(baseline: str) -> None:
    """Gemma 2 caps scores; here with causal attention, since its prefix attention rules the engine out."""
    model, inputs = family("paligemma2", torch.float64)
    causal = HookedVLM.from_hf(VARIANTS["paligemma2"].model(seed=1)).to(dtype=torch.float64)
    causal.cfg = replace(model.cfg, image_attention="causal")
    assert causal.cfg.attn_softcap is not None
    check(causal, inputs, baseline=baseline)


# --- ends, batches, rest


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", ["llava-vicuna", "gemma3", "qwen2.5-vl", "aya-vision"])
def test_ends_are_head_masks(name: str, baseline: str) -> None:
    model, inputs = family(name, torch.float64)
    runs, _ = both(model, inputs, baseline=baseline)
    ones = torch.ones(1, *runs.shape, dtype=torch.bool)
    masks = torch.cat([ones, ~ones, random_masks(4, *runs.shape)])
    expected = PrefixRuns(model, inputs, metric=LOGIT, baseline=baseline_of(model, baseline))(masks)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(runs(masks.to(runs.dtype)), expected, atol=1e-12, rtol=0)


def test_points_do_not_touch_each_other() -> None:
    model = tiny_model(n_kv=2).to(dtype=torch.float64)
    runs, _ = both(model, tiny_sample(model).to(dtype=torch.float64))
    at = points(runs, 3)
    together = values_and_slopes(runs, at)
    alone = [values_and_slopes(runs, at[[i]]) for i in range(3)]
    for i, joint in enumerate(together):
        torch.testing.assert_close(joint, torch.cat([one[i] for one in alone]), atol=1e-12, rtol=0)


def test_weights_ask_for_gradients_in_vain() -> None:
    model = tiny_model().to(dtype=torch.float64)
    inputs = tiny_sample(model).to(dtype=torch.float64)
    held = values_and_slopes(both(model, inputs)[0], points(both(model, inputs)[0]))
    for weight in model.parameters():
        weight.requires_grad_(True)
    asking = values_and_slopes(both(model, inputs)[0], points(both(model, inputs)[0]))
    assert all(weight.grad is None for weight in model.parameters())
    torch.testing.assert_close(held, asking, atol=1e-12, rtol=0)


def test_half_precision_weights_compute_in_float32_on_a_cpu() -> None:
    model = tiny_model(n_kv=2).to(dtype=torch.bfloat16)
    check(model, tiny_sample(model))


# --- what must fail


@pytest.mark.parametrize("shape", [(2, 4, 3), (3, 4), (0, 3, 4)], ids=["transposed", "no points", "none"])
@pytest.mark.usefixtures("unchecked")
def test_gates_of_another_shape(shape: tuple[int, ...]) -> None:
    model = tiny_model()
    for runs in both(model, tiny_sample(model)):
        with pytest.raises(ShapeError, match=r"Float\[point, layer, head\] = \[n, 3, 4\], n > 0"):
            runs(torch.ones(shape))
        with pytest.raises(ShapeError, match=r"torch.bool"):
            runs(torch.ones(2, 3, 4, dtype=torch.bool))


@pytest.mark.usefixtures("unchecked")
def test_prompts_and_baselines_that_do_not_qualify() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)
    kinds: list[Any] = [GatedRuns, PlainGates]
    for runs in kinds:
        with pytest.raises(EmptyGroup, match="no such text"):
            runs(
                model,
                model.prepare([Prompt(question="what is this ?", answer="red")]),
                metric=LOGIT,
                baseline="zero",
            )
        with pytest.raises(ShapeError, match=r"one sample, not 2: inputs.select"):
            runs(model, model.prepare([prompt(0), prompt(1)]), metric=LOGIT, baseline="zero")
        with pytest.raises(InterventionError, match="'median' is unknown; known: mean_image_tokens"):
            runs(model, inputs, metric=LOGIT, baseline="median")
        with pytest.raises(AnswerError, match="answer"):
            runs(model, replace(inputs, answer_ids=None), metric=LOGIT, baseline="zero")


@pytest.mark.parametrize("name", list(REFUSED))
def test_prefix_attention_is_refused(name: str) -> None:
    model, inputs = family(name, torch.float32)
    with pytest.raises(EngineNotExact, match=REFUSED[name]):
        GatedRuns(model, inputs, metric=LOGIT)


def test_hooks_are_refused_before_and_during() -> None:
    model = tiny_model()
    runs, _ = both(model, tiny_sample(model))
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: None)]):
        with pytest.raises(EngineNotExact, match="have hooks"):
            both(model, tiny_sample(model))
        with pytest.raises(EngineNotExact, match="have hooks"):
            runs(points(runs))
    runs(points(runs))
