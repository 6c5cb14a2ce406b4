import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmlens.pretrained.architecture import build_model, build_processor, save_folder
from mmlens.pretrained.train import sample_patches
from mmlens.pretrained.vocabulary import PROMPT

QUESTION = "Which object has the colour of the digit?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_folder(build_model(0, layers=2, vision_layers=1), folder)
    return folder


def test_a_saved_folder_loads_in_fp32_and_holds_the_rounded_weights(folder):
    model = build_model(0, layers=2, vision_layers=1)
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert loaded.dtype == torch.float32 == loaded.lm_head.weight.dtype
    mine = model.state_dict()
    assert all(torch.equal(mine[name].half().float(), value) for name, value in loaded.state_dict().items())
    assert set(mine) == set(loaded.state_dict())


def test_the_processor_makes_the_prompt_and_the_image_tokens(folder):
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert text == PROMPT.format(question=QUESTION)
    batch = processor(images=Image.new("RGB", (120, 80)), text=text, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 64
    assert batch["pixel_values"].shape == (1, 3, 80, 80)
    assert model(**batch).logits.isfinite().all()


def test_a_chat_with_an_answer_reads_as_llava_writes_it():
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "ring"}]
    assert build_processor().apply_chat_template(chat) == f"USER: <image>\n{QUESTION} ASSISTANT: ring"


def test_configuration_says_what_llava_needs(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["dtype"] == "float32" and config["vision_feature_select_strategy"] == "default"


def test_the_seed_decides_the_first_weights():
    one, same, other = (build_model(seed, layers=1).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_building_leaves_torchs_global_state_alone():
    before = torch.get_rng_state()
    build_model(0, layers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_patch_embedding_starts_white():
    patches = sample_patches(0, n=60)
    kernel = build_model(0, patches).model.vision_tower.embeddings.patch_embedding.weight.flatten(1)
    codes = (patches - patches.mean(0)) @ kernel.T
    covariance = codes.T @ codes / len(codes)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-3 * covariance.diag().max(), "principal components are uncorrelated"
