"""Rotary position embedding (half-split form of Llama), computed in float32 from the configuration.

No buffer holds the frequencies: a cast of the model can therefore never round them.
Source: Su et al. 2021 (arXiv 2104.09864); the ``llama3`` scaling follows the Llama 3.1 release.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.config import ModelConfig, RotaryConfig


def inverse_frequencies(rotary: RotaryConfig, d_head: int) -> Float[Tensor, "half"]:
    """Radians per token of each coordinate pair, fastest first."""
    exponent = torch.arange(0, d_head, 2, dtype=torch.float32) / d_head
    frequencies = 1.0 / (rotary.base**exponent)
    if rotary.kind == "linear":
        return frequencies / rotary.factor
    if rotary.kind == "llama3":
        return _llama3(frequencies, rotary)
    return frequencies


def _llama3(frequencies: Float[Tensor, "half"], rotary: RotaryConfig) -> Float[Tensor, "half"]:
    """Stretches long wavelengths by ``factor``, keeps short ones, and blends in between."""
    wavelength = 2 * math.pi / frequencies
    longest_kept = rotary.original_n_ctx / rotary.high_freq_factor
    shortest_stretched = rotary.original_n_ctx / rotary.low_freq_factor
    blend = (rotary.original_n_ctx / wavelength - rotary.low_freq_factor) / (
        rotary.high_freq_factor - rotary.low_freq_factor
    )
    stretched = frequencies / rotary.factor
    blended = (1 - blend) * stretched + blend * frequencies
    return torch.where(
        wavelength > shortest_stretched,
        stretched,
        torch.where(wavelength < longest_kept, frequencies, blended),
    )


def rope_table(
    cfg: ModelConfig, position_ids: Int[Tensor, "batch pos"], dtype: torch.dtype
) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
    """Cosines and sines for given positions, the two halves of the head sharing them."""
    frequencies = inverse_frequencies(cfg.rotary, cfg.d_head).to(position_ids.device)
    angles = position_ids[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "#batch pos d_head"],
    sin: Float[Tensor, "#batch pos d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotates each coordinate pair ``(i, i + d_head/2)`` of ``x`` by its angle."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos[:, :, None] + turned * sin[:, :, None]
