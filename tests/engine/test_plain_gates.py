"""The hooks of gates: their ends are head masks, for every baseline and in families with more to their attention."""

from typing import Any

import pytest
import torch

from mmlens.engine.plain_gates import PlainGates
from mmlens.interventions import HeadMask, ImageKV
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from tests.engine.build import random_masks, rng, tiny_model, tiny_sample, with_answers
from tests.zoo import VARIANTS

LOGIT = as_metric("logit")


def masked(model: Any, inputs: Any, mask: torch.Tensor, baseline: Any) -> float:
    with torch.no_grad():
        edits = [HeadMask(mask=mask, baseline=baseline)]
        return float(LOGIT(model.run(inputs, edits, strict=False).logits, inputs))


def check_ends(model: Any, inputs: Any, baseline: Any, atol: float = 1e-5) -> None:
    """All gates at 1 and at 0, and some at 1 with the others at 0, are head masks."""
    inputs = model.encode_images(inputs)
    gates = PlainGates(model, inputs, metric=LOGIT, baseline=baseline)
    some = random_masks(1, *gates.shape)
    masks = torch.cat([torch.ones_like(some), torch.zeros_like(some), some])
    with torch.no_grad():
        found = gates(masks.float())
    expected = torch.tensor([masked(model, inputs, mask, baseline) for mask in masks])
    assert float((expected - expected[0]).abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("baseline", ["mean_image_tokens", "knockout", "zero"])
@pytest.mark.parametrize("n_images", [1, 2])
def test_ends_are_head_masks(baseline: Any, n_images: int) -> None:
    model = tiny_model(n_heads=4, n_kv=2)
    check_ends(model, tiny_sample(model, n_images=n_images), baseline)


def test_given_keys_and_values() -> None:
    model = tiny_model(n_heads=4, n_kv=2)
    k, v = (torch.randn(3, 2, model.cfg.d_head, generator=rng(seed)) for seed in (5, 6))
    check_ends(model, tiny_sample(model), ImageKV(k=k, v=v))


@pytest.mark.parametrize("name", ["gemma3", "aya-vision", "paligemma2", "qwen2.5-vl"])
def test_ends_are_head_masks_in_other_families(name: str) -> None:
    """Windows, caps, post-norms, prefix attention, norms of queries and keys."""
    model = HookedVLM.from_hf(VARIANTS[name].model(seed=1))
    inputs = with_answers(model.prepare(VARIANTS[name].batch(n_images=2, n_after=(6, 4)))).select([1])
    check_ends(model, inputs, "mean_image_tokens", atol=3e-5)


@pytest.mark.parametrize("name", ["llava-vicuna", "paligemma2"])
def test_slopes_are_finite_differences(name: str) -> None:
    """Where the prefix engine does not run, too."""
    model = HookedVLM.from_hf(VARIANTS[name].model(seed=1)).to(dtype=torch.float64)
    batch = with_answers(model.prepare(VARIANTS[name].batch(n_after=(5,)))).to(dtype=torch.float64)
    gates = PlainGates(model, batch, metric=LOGIT, baseline="mean_image_tokens")
    at = torch.full((1, *gates.shape), 0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gates(at).sum(), at)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        step = torch.full((2, *gates.shape), 0.3, dtype=torch.float64)
        step[0, layer, head] += 1e-4
        step[1, layer, head] -= 1e-4
        with torch.no_grad():
            up, down = gates(step)
        assert float(slope[0, layer, head]) == pytest.approx(float(up - down) / 2e-4, rel=1e-3)
