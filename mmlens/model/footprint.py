"""How much memory a model and its caches take, from the configuration alone."""

from dataclasses import dataclass

import torch

from mmlens.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Sizes in bytes for one sample.

    Attributes:
        n_parameters: parameters that are used (tower layers above the feature layer are not).
        weights: the weights in their stored dtype.
        largest_layer: the largest decoder layer's weights.
        kv_cache: keys and values of all layers.
        full_cache: what ``run_with_cache`` keeps of the decoder by default (everything but ``hook_result``).
        patterns: scores and patterns within ``full_cache``.
        head_results: ``hook_result`` of all layers, on top, if asked for.
        z: ``hook_z`` of all layers.
        final_rows: every decoder activation at one position (``pos="final"``).
    """

    n_parameters: int
    weights: int
    largest_layer: int
    kv_cache: int
    full_cache: int
    patterns: int
    head_results: int
    z: int
    final_rows: int


def footprint(
    cfg: ModelConfig, parameters: dict[str, torch.Tensor], *, n_pos: int, dtype: torch.dtype
) -> Footprint:
    """Estimates memory for one prompt.

    Args:
        cfg: the model's configuration.
        parameters: its parameters by our names (meta tensors will do).
        n_pos: prompt length in tokens.
        dtype: dtype of the activations.
    """
    size, width = dtype.itemsize, cfg.n_heads * cfg.d_head
    kv = cfg.n_key_value_heads * cfg.d_head
    row = 5 * cfg.d_model + 2 * cfg.d_model  # residual stream and outputs; normalised inputs of both norms
    row += 3 * width + 3 * kv + 3 * cfg.d_mlp + 2  # q, rot_q, z; k, rot_k, v; the MLP's three; two scales
    square = 2 * cfg.n_heads * n_pos * n_pos
    per_layer: dict[str, int] = {}
    for name, parameter in parameters.items():
        if name.startswith("blocks."):
            layer = name.split(".")[1]
            per_layer[layer] = per_layer.get(layer, 0) + parameter.nbytes
    return Footprint(
        n_parameters=sum(p.numel() for p in parameters.values()),
        weights=sum(p.nbytes for p in parameters.values()),
        largest_layer=max(per_layer.values()),
        kv_cache=size * cfg.n_layers * n_pos * 2 * kv,
        full_cache=size * cfg.n_layers * (n_pos * row + square),
        patterns=size * cfg.n_layers * square,
        head_results=size * cfg.n_layers * n_pos * cfg.n_heads * cfg.d_model,
        z=size * cfg.n_layers * n_pos * width,
        final_rows=size * cfg.n_layers * (row + 2 * cfg.n_heads * n_pos),
    )
