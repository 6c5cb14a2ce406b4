"""A checkpoint in the original LLaVA repository's format, from its files to logits and cells."""

import json
from pathlib import Path

import pytest
import torch

from mmlens.inputs import Box, Prompt
from mmlens.model import HookedVLM
from tests.loading.layouts import ORIGINAL_CONFIG, write_checkpoint
from tests.tiny import D_VOCAB, N_IMAGE_TOKENS, tiny_image, tiny_llava, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under the original names, and a Llama-like tokenizer that knows no image token."""
    path = tmp_path_factory.mktemp("original")
    write_checkpoint(tiny_llava(0), path, "original")
    tiny_tokenizer().save_pretrained(path)
    raw = json.loads((path / "tokenizer.json").read_text())
    raw["model"]["vocab"]["<spare>"] = raw["model"]["vocab"].pop("<image>")
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<image>"]
    (path / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("extra_special_tokens", None)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_from_files_to_logits(folder: Path) -> None:
    """The image token lies outside the embedding, and images are padded to a square."""
    model = HookedVLM.from_pretrained(str(folder))
    image = tiny_image(width=40, height=20)
    prompt = Prompt(question="what colour is this object ?", image=image, answer="red")
    inputs = model.prepare(prompt)
    assert model.cfg.image_token_id == D_VOCAB
    assert int(inputs.image_mask.sum()) == N_IMAGE_TOKENS
    hf = tiny_llava(0, rope={"rope_type": "default", "rope_theta": ORIGINAL_CONFIG["rope_theta"]})
    with torch.no_grad():
        features = torch.cat(list(hf.model.get_image_features(inputs.pixel_values).pooler_output))
        embedded = hf.get_input_embeddings()(inputs.input_ids.masked_fill(inputs.image_mask, 0))
        embedded = embedded.masked_scatter(inputs.image_mask[..., None], features)
        theirs = hf.lm_head(hf.model.language_model(inputs_embeds=embedded).last_hidden_state)
        assert (model(inputs) - theirs).abs().max() <= 1e-5


def test_cells_lie_in_the_unpadded_image(folder: Path) -> None:
    """A 40x20 image in a 40x40 square: the rows of cells above and below it show padding only."""
    model = HookedVLM.from_pretrained(str(folder))
    region = Box(left=0, top=0, right=20, bottom=20)
    prompt = Prompt(
        question="what is it ?", image=tiny_image(width=40, height=20), regions={"object": region}
    )
    grid = model.prepare(prompt).token_maps[0].images[0]
    heights = grid.boxes[..., 3] - grid.boxes[..., 1]
    assert heights[1:3].min() == 10 and heights[[0, 3]].max() == 0
    (cells,) = model.prepare(prompt).token_maps[0].cells("object")
    assert cells.tolist() == [
        [False] * 4,
        [True, True, False, False],
        [True, True, False, False],
        [False] * 4,
    ]
