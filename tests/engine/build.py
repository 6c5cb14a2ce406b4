"""Tiny models and prompts on which the engine is held against the plain path."""

from dataclasses import replace
from typing import Any

import torch

from tests.tiny import BOS_ID, IMAGE_TOKEN_ID, N_IMAGE_TOKENS, tiny_image, tiny_llava, tiny_processor

ANSWER, FOIL = 7, 11


def tiny_model(n_heads: int = 4, n_kv: int = 4, **options: Any) -> Any:
    from mmlens.model import HookedVLM

    return HookedVLM.from_hf(tiny_llava(n_heads=n_heads, n_kv=n_kv, **options), tiny_processor())


def tiny_sample(
    model: Any, n_before: int = 3, n_after: int = 6, n_images: int = 1, n_between: int = 2
) -> Any:
    """One prompt by token ids: text, images with text between them, text; with an answer and a foil."""
    words = torch.randint(5, 60, (n_before + n_after + n_between * n_images,), generator=rng(1)).tolist()
    ids, image = words[:n_before], [IMAGE_TOKEN_ID] * N_IMAGE_TOKENS
    if ids:
        ids[0] = BOS_ID
    for number in range(n_images):
        ids += image + (words[n_before : n_before + n_between] if number < n_images - 1 else [])
    ids = torch.tensor([ids + words[len(words) - n_after :]])
    pixels = torch.randn(n_images, 3, 20, 20, generator=rng(2))
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return with_answers(model.prepare(tensors))


def with_answers(inputs: Any, answer: int = ANSWER, foil: int = FOIL) -> Any:
    ids = torch.full((inputs.batch_size,), answer)
    return replace(inputs, answer_ids=ids, foil_ids=torch.full_like(ids, foil))


def prompt(number: int = 0, question: str = "what colour is this object ?", **options: Any) -> Any:
    from mmlens.inputs import Prompt

    options = {"answer": "red", "foil": "blue"} | options
    return Prompt(question=question, image=tiny_image(number), **options)


def random_masks(
    n: int, n_layers: int = 3, n_heads: int = 4, keep: float = 0.5, seed: int = 0
) -> torch.Tensor:
    return torch.rand(n, n_layers, n_heads, generator=rng(seed)) < keep


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
