"""What all head masks of one prompt share: keys and values before the suffix, and its clean residuals.

1. Check that the prompt qualifies: one sample, image tokens, and text after the last of them (the suffix).
2. Run the prompt once, clean.
3. Keep each layer's keys (after rotary) and values, split into image tokens and the other tokens before the
   suffix.
4. Keep the residual stream of the suffix before every layer, so that a mask which ablates nothing below layer
   l can start there.

Exactness: a head mask changes only what text after the last image token reads. In a causal decoder everything
before the suffix is therefore the same for every mask, text between several images included.
"""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.engine.shared_prefix import LayerPrefix, Replacement
from mmlens.engine.sight import Sight, sight
from mmlens.errors import EngineNotExact
from mmlens.inputs import Inputs
from mmlens.interventions import ImageKV
from mmlens.model import HookedVLM
from mmlens.model.quantised import mixing_rows
from mmlens.model.rotary import Rope, rope_on, rope_tables


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixState:
    """One prompt, run once.

    Attributes:
        layers: shared keys and values, one entry per layer.
        residual: clean residual stream of the suffix before every layer.
        final: clean residual stream of the last position after the last layer.
        ropes: rotary cosines and sines of the suffix positions, one entry per layer; None where a layer has no
            positions.
    """

    layers: tuple[LayerPrefix, ...]
    residual: Float[Tensor, "layer suffix d_model"]
    final: Float[Tensor, "1 1 d_model"]
    ropes: tuple[Rope | None, ...]

    @property
    def n_suffix(self) -> int:
        """Positions after the last image token."""
        return self.residual.shape[1]

    @property
    def n_image(self) -> int:
        """Image tokens, of all images."""
        return self.layers[0].k_image.shape[1]


def suffix_start(model: HookedVLM, inputs: Inputs) -> int:
    """Column at which the suffix begins, if the shared-prefix engine is exact here.

    Args:
        model: the model, for its hooks.
        inputs: one sample.

    Raises:
        EngineNotExact: several samples, padding inside, no image, no text after it, hooks on the model, or attention
            that is not the same before the suffix for all masks.
    """
    check_attention(model.cfg)
    if inputs.batch_size != 1:
        raise EngineNotExact(
            f"the prefix engine runs one sample at a time, not {inputs.batch_size}: inputs.select([i])."
        )
    if not bool(inputs.attention_mask.bool().all()):
        raise EngineNotExact("the sample has padding; inputs.select([i]) drops it.")
    image = inputs.image_mask[0].nonzero()[:, 0]
    if len(image) == 0:
        raise EngineNotExact("the prompt has no image tokens, so no head carries an image into text.")
    start = int(image[-1]) + 1
    if start == inputs.n_pos:
        raise EngineNotExact("nothing follows the last image token, so no text reads the image.")
    check_no_hooks(model)
    check_rows_alone(model)
    return start


def check_attention(cfg: ModelConfig) -> None:
    """The engine needs causal attention from the suffix back to earlier tokens, through windows or not.

    Tokens of one image may read each other (Gemma 3): they all lie before the suffix.

    Raises:
        EngineNotExact: the prompt reads itself in both directions.
    """
    if cfg.image_attention == "prefix":
        raise EngineNotExact(
            f"{cfg.architecture} reads its whole prompt in both directions (prefix-LM), so a head mask changes what "
            "stands before the suffix too: use engine='plain'."
        )


def check_rows_alone(model: HookedVLM) -> None:
    """The engine needs maps whose output for one token is the same whatever else is computed with it.

    Raises:
        EngineNotExact: int8 matrices that keep outlier columns.
    """
    mixing = mixing_rows(model)
    if mixing:
        raise EngineNotExact(
            f"{len(mixing)} matrices are held in int8 (the first: {mixing[0]}), where the activations of one token are "
            "rounded by what others are computed with it: use engine='plain', load with quantization='nf4', or call "
            "model.dequantise()."
        )


def check_no_hooks(model: HookedVLM) -> None:
    """The engine calls the layers' parts by itself, so hooks between them would not run.

    Raises:
        EngineNotExact: the model has hooks.
    """
    hooked = [name for name, point in model.hook_dict.items() if point.has_hooks()]
    if hooked:
        raise EngineNotExact(
            f"{len(hooked)} hook points of the model have hooks (the first: {hooked[0]}), which the prefix "
            "engine would pass by. Remove them (model.reset_hooks()), or use engine='plain', which is slower "
            "and runs them."
        )


def prefix_state(model: HookedVLM, inputs: Inputs) -> PrefixState:
    """Runs one prompt clean and keeps what all head masks share.

    Args:
        model: a HookedVLM.
        inputs: one sample without padding.

    Raises:
        EngineNotExact: as in ``suffix_start``.
    """
    start = suffix_start(model, inputs)
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        model.run_with_hooks(
            inputs, fwd_hooks=_recorders(model.cfg.n_layers, start, kept), logits_pos="final"
        )
    is_image = inputs.image_mask[0, :start]
    sights = {window: sight(window, start, is_image.cpu(), inputs.n_pos) for window in set(model.cfg.windows)}
    layers = tuple(
        _split(
            kept[f"blocks.{layer}.attn.hook_rot_k"],
            kept[f"blocks.{layer}.attn.hook_v"],
            is_image,
            sights[window],
        )
        for layer, window in enumerate(model.cfg.windows)
    )
    before = [kept[f"blocks.{layer}.hook_resid_pre"] for layer in range(model.cfg.n_layers)]
    residual = torch.cat([one.to(model.device) for one in before])  # layers may lie on several devices
    positions = model.rope_positions(inputs)[..., start:].to(residual.device)
    tables = rope_tables(model.cfg, positions, residual.dtype)
    ropes = tuple(
        rope_on(tables[rope], model.layer_device(layer)) for layer, rope in enumerate(model.cfg.ropes)
    )
    final = kept[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    return PrefixState(layers=layers, residual=residual, final=final, ropes=ropes)


def replacements(state: PrefixState, baseline: str | ImageKV) -> tuple[Replacement, ...] | None:
    """What ablated heads read in place of every image token, per layer; None for nothing.

    Args:
        state: the prompt, for the mean over its own image tokens.
        baseline: as in ``HeadMask``.
    """
    if baseline == "knockout":
        return None
    if isinstance(baseline, ImageKV):
        pairs = zip(baseline.k, baseline.v, state.layers, strict=True)
        return tuple(Replacement(k=k.to(one.k_image), v=v.to(one.v_image)) for k, v, one in pairs)
    if baseline == "zero":
        return tuple(
            Replacement(k=torch.zeros_like(one.k_image[:, 0]), v=torch.zeros_like(one.v_image[:, 0]))
            for one in state.layers
        )
    return tuple(Replacement(k=one.k_image.mean(dim=1), v=one.v_image.mean(dim=1)) for one in state.layers)


def _recorders(n_layers: int, start: int, kept: dict[str, Tensor]) -> list[tuple[str, Any]]:
    def keep(columns: slice) -> Any:
        def hook(tensor: Tensor, hook: Any) -> None:
            kept[hook.name] = tensor[:, columns].detach().clone()

        return hook

    before, after, last = slice(0, start), slice(start, None), slice(-1, None)
    names = [
        (f"blocks.{layer}.attn.hook_{name}", keep(before))
        for layer in range(n_layers)
        for name in ("rot_k", "v")
    ]
    names += [(f"blocks.{layer}.hook_resid_pre", keep(after)) for layer in range(n_layers)]
    return [*names, (f"blocks.{n_layers - 1}.hook_resid_post", keep(last))]


def _split(
    k: Float[Tensor, "1 prefix kv_head d_head"],
    v: Float[Tensor, "1 prefix kv_head d_head"],
    is_image: Bool[Tensor, " prefix"],
    seen: Sight | None,
) -> LayerPrefix:
    k, v = (rearrange(x, "1 pos kv d -> kv pos d") for x in (k, v))
    is_image = is_image.to(k.device)
    return LayerPrefix(
        k_system=k[:, ~is_image],
        v_system=v[:, ~is_image],
        k_image=k[:, is_image],
        v_image=v[:, is_image],
        sight=None if seen is None else seen.to(k.device),
    )
