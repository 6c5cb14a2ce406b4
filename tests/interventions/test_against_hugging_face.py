"""Interventions against hand-made ones on the unmodified Hugging Face model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mmlens.interventions import Block, Zero
from mmlens.model import HookedVLM
from tests.model.conftest import Pair, make_pair

D_HEAD = 8


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["kv4", "kv2", "kv1"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Multi-head, grouped and multi-query attention, computed explicitly as the eager oracle does."""
    pair = make_pair(request.param)
    pair.model.fused_attention = False
    return pair


@contextmanager
def o_proj_zeroed(hf: Any, layer: int, head: int) -> Iterator[None]:
    """Zeroes one head's slice of what the output map reads."""

    def zero(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        z = args[0].clone()
        z[..., head * D_HEAD : (head + 1) * D_HEAD] = 0
        return (z,)

    handle = hf.model.language_model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def image_blocked(hf: Any, layer: int, head: int, image: torch.Tensor) -> Iterator[None]:
    """Adds a per-head 4-D mask to one layer: queries after the image cannot read image keys."""

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        additive = kwargs["attention_mask"].expand(-1, 4, -1, -1).clone()
        n_query, n_key = additive.shape[-2:]
        columns = (
            image[:, :n_key]
            if n_key <= image.shape[1]
            else torch.nn.functional.pad(image, (0, n_key - image.shape[1]))
        )
        text = (
            torch.arange(n_key - n_query, n_key)[None, :]
            > image.shape[1] - 1 - image.flip(1).int().argmax(1)[:, None]
        )
        closed = text[:, :, None] & columns[:, None, :]
        additive[:, head] = additive[:, head].masked_fill(closed, torch.finfo(additive.dtype).min)
        return args, {**kwargs, "attention_mask": additive}

    module = hf.model.language_model.layers[layer].self_attn
    handle = module.register_forward_pre_hook(mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("head", range(4))
def test_zeroing_a_head_in_a_run(pair: Pair, head: int) -> None:
    with o_proj_zeroed(pair.hf, 1, head):
        theirs = pair.hf_logits()
    with torch.no_grad():
        ours = pair.model.run(pair.inputs, Zero(at="z", layers=1, heads=head)).logits
        clean = pair.model(pair.inputs)
    effect = (ours - clean)[pair.real]
    assert effect.abs().max() > 1e-2
    assert (effect - (theirs - pair.hf_logits())[pair.real]).abs().max() <= 1e-6
    assert (ours - theirs)[pair.real].abs().max() <= 1e-6


@pytest.mark.parametrize("head", range(4))
def test_blocking_one_head_in_a_run(pair: Pair, head: int) -> None:
    with image_blocked(pair.hf, 1, head, pair.inputs.image_mask):
        theirs = pair.hf_logits()
    with torch.no_grad():
        ours = pair.model.run(pair.inputs, Block(src="image", dst="text", heads=[(1, head)])).logits
    assert (theirs - pair.hf_logits())[pair.real].abs().max() > 1e-3
    assert (ours - theirs)[pair.real].abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["zero", "block"])
def test_in_cached_decoding(pair: Pair, kind: str) -> None:
    layer, head = 2, 1
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    if kind == "zero":
        context, intervention = o_proj_zeroed(pair.hf, layer, head), Zero(at="z", layers=layer, heads=head)
    else:
        context = image_blocked(pair.hf, layer, head, pair.inputs.image_mask)
        intervention = Block(src="image", dst="text", heads=[(layer, head)])
    with context:
        theirs = pair.hf.generate(**pair.batch, **options)
    ours = pair.model.generate(pair.inputs, intervention, max_new_tokens=6)
    clean = pair.model.generate(pair.inputs, max_new_tokens=6)
    n = ours.logits.shape[1]
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert (ours.logits - torch.stack(theirs.logits, dim=1)[:, :n]).abs().max() <= 1e-6
    assert (ours.logits[:, 0] - clean.logits[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "intervention", [Block(src="image", heads=[(1, 2)]), Zero(at="z", layers=0, heads=3)]
)
def test_fused_attention_adds_rounding_only(intervention: Block | Zero) -> None:
    """The oracle is eager; with fused attention the difference is 1e-6 in float32 and vanishes in float64."""
    pair = make_pair(2)
    for model, bound in (
        (pair.model, 5e-6),
        (HookedVLM.from_hf(pair.hf.double(), pair.model.processor), 1e-12),
    ):
        with torch.no_grad():
            fused = model.run(pair.inputs, intervention).logits
            model.fused_attention = False
            unfused = model.run(pair.inputs, intervention).logits
        assert 0 < (fused - unfused)[pair.real].abs().max() <= bound
