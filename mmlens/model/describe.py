"""A model in words: sizes, hook names, memory."""

from typing import TYPE_CHECKING

import torch

from mmlens.model.footprint import footprint

if TYPE_CHECKING:
    from mmlens.model.hooked_vlm import HookedVLM


def describe(model: "HookedVLM", *, n_pos: int, all_hooks: bool = False) -> str:
    """A text for people.

    Args:
        model: the model; parameters on the meta device will do.
        n_pos: prompt length, in tokens, for the memory estimate.
        all_hooks: list every hook point instead of one line a kind.
    """
    return "\n\n".join((_sizes(model), _memory(model, n_pos), _hooks(model, all_hooks)))


def _sizes(model: "HookedVLM") -> str:
    cfg, vision = model.cfg, model.cfg.vision
    used, side = len(model.vision.blocks), vision.image_size
    rows = [
        ("model", f"{model.model_id} ({cfg.architecture}, {cfg.text_model_type} decoder)"),
        ("decoder", f"{cfg.n_layers} layers x {cfg.n_heads} heads ({cfg.n_key_value_heads} key-value heads)"),
        ("widths", f"d_model {cfg.d_model}, d_head {cfg.d_head}, d_mlp {cfg.d_mlp}, d_vocab {cfg.d_vocab}"),
        ("vision tower", f"{used} of {vision.n_layers} layers used, {vision.n_heads} heads, d_model {vision.d_model}"),
        ("image tokens", f"{vision.grid} x {vision.grid} = {vision.grid**2} per image of {side} x {side} pixels"),
    ]  # fmt: skip
    return "\n".join(f"{name:14}{text}" for name, text in rows)


def _memory(model: "HookedVLM", n_pos: int) -> str:
    stored = model.embed.weight.dtype
    compute = torch.float32 if stored in (torch.float16, torch.bfloat16) else stored
    sizes = footprint(model.cfg, dict(model.named_parameters()), n_pos=n_pos, dtype=compute)
    rows = [
        ("weights", sizes.weights, f"{sizes.n_parameters:,} parameters in {_short(stored)}"),
        ("largest layer", sizes.largest_layer, "weights of one decoder layer"),
        ("key-value cache", sizes.kv_cache, f"{n_pos} tokens, activations in {_short(compute)}"),
        ("run_with_cache", sizes.full_cache, f"all but hook_result; scores and patterns are {_bytes(sizes.patterns)}"),
        ("hook_result", sizes.head_results, "on top, all layers"),
        ("hook_z", sizes.z, "all layers"),
        ('pos="final"', sizes.final_rows, "every decoder activation at one position"),
    ]  # fmt: skip
    lines = [f"  {name:17}{_bytes(size):>10}   {text}" for name, size, text in rows]
    return "\n".join([f"memory for one prompt of {n_pos} tokens (estimate):", *lines])


def _hooks(model: "HookedVLM", all_hooks: bool) -> str:
    names = list(model.hook_dict)
    if all_hooks:
        return "\n".join([f"{len(names)} hook points:", *(f"  {name}" for name in names)])
    once = [n for n in names if "blocks." not in n]
    first = [
        n.replace("blocks.0.", "blocks.{l}.")
        for n in names
        if n.startswith(("blocks.0.", "vision.blocks.0."))
    ]
    return "\n".join([f"{len(names)} hook points:", *(f"  {name}" for name in (*once, *first))])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(n: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n = n / 1024  # type: ignore[assignment]
    return f"{n:.1f} GiB"
