"""Builds the scenes model from nothing: an ordinary LLaVA-1.5, only small."""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mmlens.datasets.scenes.values import CELL, SIZE
from mmlens.pretrained.vocabulary import CHAT_TEMPLATE, EOS, IMAGE, PAD, build_tokenizer

D_MODEL = 96
MEAN = STD = 0.5
"""Pixel values run from -1 to 1 in every channel."""


def build_config(tokenizer, *, layers: int = 6, vision_layers: int = 4, heads: int = 8) -> LlavaConfig:
    """The configuration: CLIP tower, two-layer GELU projector, Llama decoder, all of width D_MODEL.

    Features are taken after the tower's last layer (LLaVA-1.5 takes the last but one), so that no weight
    of the folder is idle but the tower's final norm, which LLaVA never uses.
    """
    ids = tokenizer.convert_tokens_to_ids
    vision = CLIPVisionConfig(
        hidden_size=D_MODEL,
        intermediate_size=4 * D_MODEL,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=D_MODEL,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        initializer_range=D_MODEL**-0.5,
        pad_token_id=ids(PAD),
        eos_token_id=ids(EOS),
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids(IMAGE),
        image_seq_length=(SIZE // CELL) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global state is seeded inside and as before outside; modules draw their first weights from it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_model(
    seed: int | None, patches: Float[Tensor, "n d_patch"] | None = None, **sizes: int
) -> LlavaForConditionalGeneration:
    """A fresh model in fp32.

    Args:
        seed: Seed of the initial weights; None draws them from torch's global state as it stands.
        patches: Pixel values of sample patches, flattened channel-first: when given, the patch embedding
            starts as their whitened principal components and positions as two-dimensional sines.
        **sizes: Passed to :func:`build_config`.
    """
    tokenizer = build_tokenizer()
    with nullcontext() if seed is None else seeded(seed):
        model = LlavaForConditionalGeneration(build_config(tokenizer, **sizes)).float()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
        do_sample=False,
        max_new_tokens=4,
    )
    if patches is not None:
        _whiten(model, patches)
    return model


def build_processor() -> LlavaProcessor:
    """Tokenizer, chat template and CLIP image processor, as LLaVA-1.5 has them."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def save_folder(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Write an ordinary HF folder: weights rounded to fp16, configuration, processor, chat template.

    The configuration says fp32, so that ``from_pretrained`` computes in fp32: fp16 is storage only.
    """
    folder = Path(folder)
    copy.deepcopy(model).half().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)


@torch.no_grad()
def _whiten(model: LlavaForConditionalGeneration, patches: Float[Tensor, "n d_patch"]) -> None:
    embeddings = model.model.vision_tower.embeddings
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    top = values.argsort(descending=True)[:D_MODEL]
    rows = vectors[:, top].T / (values[top] + 0.02).sqrt()[:, None]
    embeddings.patch_embedding.weight.copy_(rows.view_as(embeddings.patch_embedding.weight) * 0.5)
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:] = _sines(SIZE // CELL, D_MODEL) * 0.5


def _sines(side: int, width: int) -> Float[Tensor, "cell width"]:
    """Two-dimensional sine-cosine positions: a quarter of the width each for sin/cos of row and column."""
    rates = math.pi / side * torch.arange(1, width // 4 + 1) / 2
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)
