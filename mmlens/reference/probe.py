"""Synthetic inputs that exercise a model: random tokens and pixels, left padding, several images a prompt.

Random tokens need no tokenizer and reach corners that sensible prompts do not.
"""

import torch

from mmlens.config import ModelConfig
from mmlens.inputs import Inputs, prepare

_N_BEFORE = 3  # tokens before the first image
_N_BETWEEN = 2  # tokens between two images


def probe_inputs(
    cfg: ModelConfig, *, n_images: int = 1, n_after: tuple[int, ...] = (7, 3), seed: int = 0
) -> Inputs:
    """A left-padded batch of random prompts with random pixels.

    Args:
        cfg: shape of the model.
        n_images: images in each prompt.
        n_after: text tokens after the last image, one number a sample; unequal numbers make padding.
        seed: of tokens and pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [_random_prompt(cfg, n_images, n, generator) for n in n_after]
    n_pos = max(map(len, rows))
    ids = torch.stack(
        [torch.nn.functional.pad(row, (n_pos - len(row), 0), value=_text_ids(cfg)[0]) for row in rows]
    )
    real = torch.stack([torch.arange(n_pos) >= n_pos - len(row) for row in rows])
    side = cfg.vision.image_size
    pixels = torch.randn(n_images * len(rows), 3, side, side, generator=generator)
    batch = {"input_ids": ids, "attention_mask": real.long(), "pixel_values": pixels}
    return prepare(batch, processor=None, cfg=cfg)


def _random_prompt(cfg: ModelConfig, n_images: int, n_after: int, generator: torch.Generator) -> torch.Tensor:
    image = torch.full((cfg.vision.grid**2 + (not cfg.vision.drop_cls),), cfg.image_token_id)
    parts = [_random_text(cfg, _N_BEFORE, generator)]
    for index in range(n_images):
        parts += [image, _random_text(cfg, n_after if index == n_images - 1 else _N_BETWEEN, generator)]
    return torch.cat(parts)


def _random_text(cfg: ModelConfig, n: int, generator: torch.Generator) -> torch.Tensor:
    known = torch.tensor(_text_ids(cfg))
    return known[torch.randint(len(known), (n,), generator=generator)]


def _text_ids(cfg: ModelConfig) -> list[int]:
    """Token ids that mean nothing special."""
    special = {cfg.image_token_id, cfg.bos_token_id, *cfg.eos_token_ids}
    return [token for token in range(cfg.d_vocab) if token not in special]
