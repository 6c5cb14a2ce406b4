"""mmlens.loading.original_llava: config, tower and processor of the original repository's format."""

import json

import numpy as np
import pytest
import torch

from mmlens.config import ModelConfig
from mmlens.errors import CheckpointError, UnsupportedArchitecture
from mmlens.loading import open_checkpoint
from tests.loading.layouts import (
    LAYOUTS,
    live_tensors,
    write_checkpoint,
    write_original_config,
    write_tensors,
)
from tests.tiny import D_VOCAB, N_IMAGE_TOKENS, tiny_image, tiny_llava, tiny_llava_config, tiny_tokenizer

TOWER = "model.vision_tower."


@pytest.fixture(scope="module")
def model():
    return tiny_llava(0)


def test_the_configuration_is_translated(tmp_path, model):
    write_checkpoint(model, tmp_path, "original")
    config = open_checkpoint(tmp_path).hf_config
    assert config.model_type == "llava" and config.image_token_id == D_VOCAB
    assert config.text_config.rope_parameters["rope_theta"] == 5000.0
    assert config.text_config.rms_norm_eps == 1e-5
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.vision_config.patch_size == model.config.vision_config.patch_size


@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_rotary_scaling_is_translated(tmp_path, model, kind_key):
    write_checkpoint(model, tmp_path, "original")
    write_original_config(model, tmp_path, rope_scaling={kind_key: "linear", "factor": 2.0})
    rotary = ModelConfig.from_hf(open_checkpoint(tmp_path).hf_config).rotary
    assert (rotary.kind, rotary.factor, rotary.base) == ("linear", 2.0, 5000.0)


@pytest.mark.parametrize("whole_clip", [False, True])
def test_a_tower_that_is_only_named_is_read_from_its_own_folder(tmp_path, model, whole_clip):
    live = live_tensors(model)
    own = {LAYOUTS["original"](name): value for name, value in live.items() if not name.startswith(TOWER)}
    write_tensors(own, tmp_path, n_shards=2)
    write_original_config(model, tmp_path)
    tower = {
        f"vision_model.{name.removeprefix(TOWER)}": t for name, t in live.items() if name.startswith(TOWER)
    }
    if whole_clip:
        tower |= {"text_model.final_layer_norm.bias": torch.ones(4), "logit_scale": torch.ones(())}
    write_tensors(tower, tmp_path / "tower")
    tensors = open_checkpoint(tmp_path).tensors
    assert set(tensors) == set(live)
    assert all(torch.equal(tensors[name], live[name]) for name in live)


def test_a_tower_that_cannot_be_found_says_so(tmp_path, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    write_checkpoint(model, tmp_path, "original")
    write_original_config(model, tmp_path, mm_vision_tower="nobody/no-tower")
    with pytest.raises(CheckpointError, match=r"vision tower 'nobody/no-tower' .* llava-hf/llava-1.5-7b-hf"):
        open_checkpoint(tmp_path)


def test_the_well_known_towers_need_no_folder(tmp_path, model):
    write_checkpoint(model, tmp_path, "original")
    write_original_config(model, tmp_path, mm_vision_tower="openai/clip-vit-large-patch14-336")
    vision = open_checkpoint(tmp_path).hf_config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.image_size, vision.patch_size) == (
        24,
        1024,
        336,
        14,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llava_mpt"),
        ("mm_projector_type", "linear"),
        ("mm_use_im_start_end", True),
        ("image_aspect_ratio", "anyres"),
        ("mm_patch_merge_type", "spatial_unpad"),
    ],
)
def test_settings_that_change_the_computation_are_refused(tmp_path, model, field, value):
    write_checkpoint(model, tmp_path, "original")
    write_original_config(model, tmp_path, **{field: value})
    with pytest.raises(UnsupportedArchitecture, match=str(value)):
        open_checkpoint(tmp_path)


def _with_tokenizer(folder, model):
    write_checkpoint(model, folder, "original")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_the_processor_adds_the_image_token_after_the_vocabulary_and_pads_to_a_square(tmp_path):
    model = tiny_llava(0, config=tiny_llava_config())
    _with_tokenizer(tmp_path, model)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["model"]["vocab"]["<spare>"] = raw["model"]["vocab"].pop("<image>")
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<image>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("extra_special_tokens", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = open_checkpoint(tmp_path).processor()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red ?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "USER: <image>\nred ? ASSISTANT:"
    batch = processor(text=text, images=tiny_image(width=40, height=20), return_tensors="pt")
    assert int((batch["input_ids"] == D_VOCAB).sum()) == N_IMAGE_TOKENS
    border = batch["pixel_values"][0, :, 0, :].numpy()
    assert np.abs(border).max() < 0.02, (
        "a wide image is padded above and below with the mean colour (0 after scaling)"
    )


def test_a_tokenizer_of_another_size_is_refused(tmp_path, model):
    _with_tokenizer(tmp_path, model)
    with pytest.raises(CheckpointError, match="'<image>' the id 98, expected 100"):
        open_checkpoint(tmp_path).processor()
