"""Rotary position embedding, computed in float32 from the configuration.

No buffer holds the frequencies: a cast of the model can therefore never round them.
Source: Su et al. 2021 (arXiv 2104.09864); ``llama3`` scaling follows the Llama 3.1 release, ``longrope`` Ding et al.
2024 (arXiv 2402.13753), positions of several axes Qwen2-VL (arXiv 2409.12191).
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.config import ModelConfig, RotaryConfig

Rope = tuple[Float[Tensor, "#batch pos d_rotary"], Float[Tensor, "#batch pos d_rotary"]]


def inverse_frequencies(rotary: RotaryConfig, d_head: int, *, long: bool = False) -> Float[Tensor, "half"]:
    """Radians per token of each coordinate pair, fastest first.

    Args:
        rotary: which embedding.
        d_head: width of a head.
        long: whether the sequence has outgrown the original context (``longrope``).
    """
    d_rotary = int(d_head * rotary.fraction)
    exponent = torch.arange(0, d_rotary, 2, dtype=torch.float32) / d_rotary
    if rotary.kind == "longrope":
        factors = torch.tensor(rotary.long_factors if long else rotary.short_factors, dtype=torch.float32)
        return 1.0 / (factors * rotary.base**exponent)
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


def rope_tables(
    cfg: ModelConfig,
    position_ids: Int[Tensor, "batch pos"] | Int[Tensor, "3 batch pos"],
    dtype: torch.dtype,
) -> Mapping[RotaryConfig | None, Rope | None]:
    """Cosines and sines of every rotary embedding that a layer uses; None for layers without positions.

    Args:
        cfg: the model's configuration.
        position_ids: one position a token, or three (temporal, vertical, horizontal) where the model has ``mrope``.
        dtype: of the tables.
    """
    return {
        rope: None if rope is None else rope_table(rope, cfg.d_head, position_ids, dtype)
        for rope in set(cfg.ropes)
    }


def rope_table(
    rotary: RotaryConfig,
    d_head: int,
    position_ids: Int[Tensor, "batch pos"] | Int[Tensor, "3 batch pos"],
    dtype: torch.dtype,
) -> Rope:
    """Cosines and sines for given positions, both coordinates of a pair sharing them."""
    long = rotary.kind == "longrope" and int(position_ids.max()) + 1 > rotary.original_n_ctx
    frequencies = inverse_frequencies(rotary, d_head, long=long).to(position_ids.device)
    angles = position_ids[..., None].float() * frequencies  # [batch, pos, half] or [3, batch, pos, half]
    if angles.ndim == 4:
        angles = _one_axis_each(angles, rotary)
    angles = (
        angles.repeat_interleave(2, dim=-1) if rotary.interleaved else torch.cat((angles, angles), dim=-1)
    )
    return (
        (angles.cos() * rotary.attention_factor).to(dtype),
        (angles.sin() * rotary.attention_factor).to(dtype),
    )


def _one_axis_each(
    angles: Float[Tensor, "3 batch pos half"], rotary: RotaryConfig
) -> Float[Tensor, "batch pos half"]:
    """The angle of the axis that each frequency follows."""
    if rotary.sections is None:
        raise ValueError("three positions a token need rotary sections.")
    half = angles.shape[-1]
    if rotary.sections_interleaved:  # axes 0 1 2 0 1 2 …; what is left over follows the temporal axis
        axis = torch.zeros(half, dtype=torch.long)
        for number in (1, 2):
            axis[number : rotary.sections[number] * 3 : 3] = number
    else:
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(rotary.sections))
    return angles[axis.to(angles.device), :, :, torch.arange(half, device=angles.device)].permute(1, 2, 0)


def rope_on(rope: Rope | None, device: torch.device) -> Rope | None:
    """The tables on a layer's device; None for a layer without positions."""
    return None if rope is None else (rope[0].to(device), rope[1].to(device))


def apply_rotary(
    x: Float[Tensor, "batch pos head d_head"], rope: Rope, *, interleaved: bool = False
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotates each coordinate pair of ``x`` by its angle.

    Args:
        x: queries or keys.
        rope: cosines and sines; if narrower than a head, the rest of the head is left as it is.
        interleaved: pairs are ``(2i, 2i + 1)`` instead of ``(i, i + d_rotary / 2)``.
    """
    cos, sin = rope[0][:, :, None], rope[1][:, :, None]
    given, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = cos.shape[-1] // 2
    first, second = (
        (slice(None, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
    )
    rotated = given * cos
    rotated[..., first].sub_(given[..., second] * sin[..., first])
    rotated[..., second].add_(given[..., first] * sin[..., second])
    return rotated if rest.shape[-1] == 0 else torch.cat((rotated, rest), dim=-1)
