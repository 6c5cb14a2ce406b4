"""The CLIP vision transformer up to the layer whose output LLaVA reads.

LLaVA-1.5 takes its features from the last layer but one, so the layers after it and the final norm never
touch the answer. They are not built: a hook there would fire and change nothing.
Source: Radford et al. 2021 (arXiv 2103.00020); LLaVA, Liu et al. 2023 (arXiv 2304.08485).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.config import VisionConfig
from mmlens.model.layer import vision_layer
from mmlens.model.norm import LayerNorm


class VisionTower(nn.Module):
    """Pixels to image features, one row per image cell.

    ``vision.blocks.{l}`` counts the layers that are used, from 0; positions inside the tower are the class
    token followed by the cells row by row.
    """

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        hidden = [layer % (cfg.n_layers + 1) for layer in cfg.feature_layers]
        self.hidden_states = tuple(hidden)  # 0 = after the embedding, l + 1 = after layer l
        self.class_embedding = nn.Parameter(torch.zeros(cfg.d_model))
        self.patch_embedding = nn.Conv2d(3, cfg.d_model, cfg.patch_size, stride=cfg.patch_size, bias=False)
        self.position_embedding = nn.Embedding(cfg.n_pos, cfg.d_model)
        self.ln_pre = LayerNorm(cfg.d_model, cfg.eps)
        self.blocks: Any = nn.ModuleList(vision_layer(cfg) for _ in range(max(hidden)))
        self.hook_embed = HookPoint()

    def embed(
        self, pixels: Float[Tensor, "image channel height width"], dtype: torch.dtype
    ) -> Float[Tensor, "image pos d_model"]:
        """Class token and cell embeddings with positions, normalised."""
        weight = self.patch_embedding.weight.to(dtype)
        cells = F.conv2d(pixels.to(dtype), weight, stride=self.cfg.patch_size).flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(dtype).expand(len(pixels), 1, -1)
        positions = self.position_embedding.weight.to(dtype)
        return self.hook_embed(self.ln_pre(torch.cat((cls, cells), dim=1) + positions))

    def forward(
        self, pixels: Float[Tensor, "image channel height width"], dtype: torch.dtype
    ) -> Float[Tensor, "image cell features"]:
        """Features of every cell, those of several layers side by side.

        Args:
            pixels: normalised pixel values as the processor makes them.
            dtype: dtype to compute in.
        """
        states = {0: self.embed(pixels, dtype)}
        hidden = states[0]
        for index, block in enumerate(self.blocks, start=1):
            hidden = block(hidden)
            if index in self.hidden_states:
                states[index] = hidden
        taken = [states[index] for index in self.hidden_states]
        if self.cfg.drop_cls:
            taken = [state[:, 1:] for state in taken]
        return torch.cat(taken, dim=-1)
