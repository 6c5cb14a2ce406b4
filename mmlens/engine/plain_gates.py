"""Gates by whole forward passes with hooks in every layer: the oracle of ``GatedRuns``."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.engine.gates import GateFunction
from mmlens.interventions import HeadBaseline, ImageKV


@final
class PlainGates(GateFunction):
    """Gates on one sample through the hooked model, several points as one batch."""

    engine: ClassVar[str] = "plain"

    def run(self, gates: Float[Tensor, "point layer head"]) -> Float[Tensor, " point"]:
        """The metric at each point, in at least float32."""
        inputs = self.inputs.select([0] * len(gates))
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for layer in range(self.shape[0]):
            gated = GatedLayer(
                layer, gates[:, layer], self.inputs.image_mask[0], self.baseline, self.model.cfg
            )
            stem = f"blocks.{layer}.attn.hook_"
            hooks += [(f"{stem}{name}", gated.keep) for name in ("rot_q", "rot_k", "v", "attn_scores")]
            hooks.append((f"{stem}z", gated.write_z))
        return self.metric(self.model.run_with_hooks(inputs, fwd_hooks=hooks, logits_pos="final"), inputs)


class GatedLayer:
    """Hooks that mix, in one layer, what heads read with what they would read of the baseline.

    Args:
        layer: number of the layer.
        gates: one row per copy of the sample that runs; 1 = the head reads the image.
        image: which positions are image tokens.
        baseline: what a closed head reads there.
        cfg: the model's configuration.
    """

    def __init__(
        self,
        layer: int,
        gates: Float[Tensor, "batch head"],
        image: Tensor,
        baseline: HeadBaseline | ImageKV,
        cfg: ModelConfig,
    ) -> None:
        self.layer, self.gates, self.image, self.baseline, self.cfg = layer, gates, image, baseline, cfg
        self.text = int(image.nonzero()[-1]) + 1  # every position from here on is text after the image
        self.group = cfg.n_heads // cfg.n_key_value_heads
        self.kept: dict[str, Tensor] = {}

    def keep(self, tensor: Tensor, hook: Any) -> None:
        """Keeps a quantity of this layer's attention."""
        self.kept[str(hook.name).rsplit("hook_", 1)[-1]] = tensor

    def write_z(self, z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        """``g · z + (1 − g) · z(baseline)`` for text after the image, ``z`` elsewhere."""
        own = z[:, self.text :]
        gate = self.gates.to(z)[:, None, :, None]
        mixed = gate * own + (1 - gate) * self._closed().to(z)
        return torch.cat([z[:, : self.text], mixed], dim=1)

    def _closed(self) -> Float[Tensor, "batch query head d_head"]:
        """What the heads give when all of them are closed, for text after the image."""
        scores = self.kept["attn_scores"][:, :, self.text :]
        lowest = torch.finfo(scores.dtype).min
        image = self.image.to(scores.device)
        reads = image & (scores > lowest / 2)  # closed edges stay closed
        v = self.kept["v"].repeat_interleave(self.group, dim=2)
        if self.baseline == "knockout":
            return einsum(self._softmax(scores.masked_fill(reads, lowest)), v, "b h q k, b k h d -> b q h d")
        k_bar, v_bar = self._replacement("rot_k"), self._replacement("v")
        score = einsum(self.kept["rot_q"][:, self.text :], k_bar, "b q h d, b h d -> b h q") * self.cfg.scale
        if (cap := self.cfg.attn_softcap) is not None:
            score = torch.tanh(score / cap) * cap
        pattern = self._softmax(torch.where(reads, score[..., None], scores))
        text = einsum(pattern * (~image).to(pattern), v, "b h q k, b k h d -> b q h d")
        weight = (pattern * image.to(pattern)).sum(-1)
        return text + einsum(weight, v_bar, "b h q, b h d -> b q h d")

    def _softmax(self, scores: Tensor) -> Tensor:
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.softmax(dim=-1, dtype=wide).to(self.kept["v"].dtype)

    def _replacement(self, which: str) -> Float[Tensor, "batch head d_head"]:
        seen = self.kept[which]
        if isinstance(self.baseline, ImageKV):
            given = self.baseline.k if which == "rot_k" else self.baseline.v
            bar = given[self.layer].to(seen)[None].expand(len(seen), -1, -1)
        elif self.baseline == "zero":
            bar = torch.zeros_like(seen[:, 0])
        else:
            bar = seen[:, self.image.to(seen.device)].mean(dim=1)
        return bar.repeat_interleave(self.group, dim=1)
