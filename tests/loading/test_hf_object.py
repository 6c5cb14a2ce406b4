"""mmlens.loading.hf_object: live parameters under canonical names, by reference."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mmlens.errors import CheckpointError
from mmlens.loading import named_tensors_of
from tests.loading.layouts import live_tensors
from tests.tiny import tiny_llava, tiny_llava_config


def test_tensors_share_storage_with_the_model_and_carry_no_gradient():
    model = tiny_llava(0).requires_grad_(True)
    tensors = named_tensors_of(model)
    live = live_tensors(model)
    assert tensors.keys() == live.keys()
    assert all(tensors[name].data_ptr() == live[name].data_ptr() for name in live)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_tied_head_appears_under_both_names():
    model = tiny_llava(0, tied=True)
    assert "lm_head.weight" not in live_tensors(model)
    tensors = named_tensors_of(model)
    assert (
        tensors["lm_head.weight"].data_ptr() == tensors["model.language_model.embed_tokens.weight"].data_ptr()
    )


def test_meta_models_are_refused():
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(tiny_llava_config())
    with pytest.raises(CheckpointError, match=r"have no data.*meta device"):
        named_tensors_of(model)
