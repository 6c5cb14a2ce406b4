"""The map from vision features to the decoder's residual stream (LLaVA-1.5: two layers with GELU between)."""

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.config import ModelConfig
from mmlens.model.linear import Linear
from mmlens.model.mlp import ACTIVATIONS


class Projector(nn.Module):
    """``linear_2(act(linear_1(features)))`` for every image cell."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        width = cfg.vision.d_model * len(cfg.vision.feature_layers)
        self.linear_1 = Linear(width, cfg.d_model, bias=cfg.projector_bias)
        self.linear_2 = Linear(cfg.d_model, cfg.d_model, bias=cfg.projector_bias)
        self.act = ACTIVATIONS[cfg.projector_act_fn]
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, features: Float[Tensor, "image cell width"]) -> Float[Tensor, "image cell d_model"]:
        """One embedding per image cell, in the decoder's space."""
        return self.hook_out(self.linear_2(self.act(self.linear_1(self.hook_in(features)))))
