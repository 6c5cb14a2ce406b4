"""One transformer layer: attention and MLP, each reading a normalised residual stream and adding to it."""

from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.config import ModelConfig, VisionConfig
from mmlens.model.attention import Attention, LayerCache, Rope
from mmlens.model.masks import CausalMask
from mmlens.model.mlp import GatedMLP, PlainMLP
from mmlens.model.norm import LayerNorm, RMSNorm


class Layer(nn.Module):
    """Pre-norm layer with TransformerLens's hook points on the residual stream."""

    def __init__(self, ln1: nn.Module, attn: Attention, ln2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = ln1, attn, ln2, mlp
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()

    def forward(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        *,
        mask: CausalMask | None = None,
        rope: Rope | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer; arguments as in :class:`Attention`."""
        residual = self.hook_resid_pre(residual)
        attn_out = self.attn(self.ln1(residual), mask=mask, rope=rope, cache=cache)
        residual = self.hook_resid_mid(residual + self.hook_attn_out(attn_out))
        return self.hook_resid_post(residual + self.hook_mlp_out(self.mlp(self.ln2(residual))))


def decoder_layer(cfg: ModelConfig) -> Layer:
    """A Llama layer: RMSNorm, rotary grouped attention, gated MLP."""
    attn = Attention(
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        n_kv_heads=cfg.n_key_value_heads,
        d_head=cfg.d_head,
        qkv_bias=cfg.attn_bias,
        out_bias=cfg.attn_bias,
        rotary=True,
    )
    mlp = GatedMLP(cfg.d_model, cfg.d_mlp, cfg.act_fn, cfg.mlp_bias)
    return Layer(RMSNorm(cfg.d_model, cfg.eps), attn, RMSNorm(cfg.d_model, cfg.eps), mlp)


def vision_layer(cfg: VisionConfig) -> Layer:
    """A CLIP layer: LayerNorm, full attention with biases, plain MLP."""
    attn = Attention(
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        n_kv_heads=cfg.n_heads,
        d_head=cfg.d_head,
        qkv_bias=True,
        out_bias=True,
        rotary=False,
    )
    mlp = PlainMLP(cfg.d_model, cfg.d_mlp, cfg.act_fn, True)
    return Layer(LayerNorm(cfg.d_model, cfg.eps), attn, LayerNorm(cfg.d_model, cfg.eps), mlp)
