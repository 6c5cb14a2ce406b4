"""mmlens.reference.attention: a private attention function, and nothing left of it."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from mmlens.errors import UnsupportedArchitecture
from mmlens.reference.attention import attention_named, attention_replaced, plain_attention
from mmlens.reference.hf import hf_own_logits


def _traces(hf_model):
    names = (set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping))
    configs = [m.config._attn_implementation for m in hf_model.modules() if hasattr(m, "config")]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf_model.modules())
    return names, configs, hooks


def _run(hf_model, inputs):
    return hf_model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        pixel_values=inputs.pixel_values,
    ).logits


def test_the_plain_function_is_eager_attention_bit_for_bit(hf_model, batches):
    for inputs in batches.values():
        eager = hf_own_logits(hf_model, inputs)
        with attention_replaced(hf_model, plain_attention):
            assert torch.equal(_run(hf_model, inputs), eager)


def test_every_attention_module_is_reached(hf_model, batches):
    layers = []

    def noting(call):
        layers.append(call.layer)
        return plain_attention(call)

    with attention_replaced(hf_model, noting):
        _run(hf_model, batches["padded"])
    assert layers == [None] * 3 + [0, 1, 2]  # three tower layers, then three decoder layers


def test_nothing_is_left_behind_even_after_an_error(hf_model, batches):
    before = _traces(hf_model)
    with attention_replaced(hf_model, plain_attention):
        assert _traces(hf_model) != before
    assert _traces(hf_model) == before

    def failing(call):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attention_replaced(hf_model, failing):
        _run(hf_model, batches["padded"])
    assert _traces(hf_model) == before


def test_other_models_do_not_notice(batches, hf_model):
    from tests.tiny import tiny_llava

    other = tiny_llava(seed=9)
    expected = _run(other, batches["padded"])
    with attention_replaced(hf_model, lambda call: plain_attention(call) * 0):
        assert torch.equal(_run(other, batches["padded"]), expected)


def test_an_own_implementation_can_be_selected_for_a_while(hf_model, batches):
    eager = hf_own_logits(hf_model, batches["padded"], "eager")
    with attention_named(hf_model, "sdpa"):
        fused = _run(hf_model, batches["padded"])
        assert hf_model.config.text_config._attn_implementation == "sdpa"
    assert hf_model.config.text_config._attn_implementation == "eager"
    real = batches["padded"].attention_mask.bool()
    assert 0 < float((fused - eager)[real].abs().max()) < 1e-5


def test_options_it_would_ignore_are_refused(hf_model, batches):
    attn = hf_model.model.language_model.layers[0].self_attn
    handle = attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "sliding_window": 4}), with_kwargs=True
    )
    try:
        refused = pytest.raises(UnsupportedArchitecture, match=r"LlamaAttention asks .*sliding_window")
        with refused, attention_replaced(hf_model, plain_attention):
            _run(hf_model, batches["padded"])
    finally:
        handle.remove()
