"""From canonical checkpoint names to the parameters of our modules, without copying.

Canonical names (see :mod:`mmlens.loading`) on the right, ours on the left. ``fill`` gives a module built on the
meta device the checkpoint's own tensors, so storage is shared with the file mapping or with a live model.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from mmlens.config import ModelConfig

_DECODER_LAYER = {
    "ln1.weight": "input_layernorm.weight",
    "ln2.weight": "post_attention_layernorm.weight",
    **{f"attn.{p}_proj.{w}": f"self_attn.{p}_proj.{w}" for p in "qkvo" for w in ("weight", "bias")},
    **{f"mlp.{p}_proj.{w}": f"mlp.{p}_proj.{w}" for p in ("gate", "up", "down") for w in ("weight", "bias")},
}

_VISION_LAYER = {
    **{f"ln{i}.{w}": f"layer_norm{i}.{w}" for i in (1, 2) for w in ("weight", "bias")},
    **{f"attn.{p}_proj.{w}": f"self_attn.{p}_proj.{w}" for p in "qkv" for w in ("weight", "bias")},
    **{f"attn.o_proj.{w}": f"self_attn.out_proj.{w}" for w in ("weight", "bias")},
    **{
        f"mlp.{ours}_proj.{w}": f"mlp.{hf}.{w}"
        for ours, hf in (("up", "fc1"), ("down", "fc2"))
        for w in ("weight", "bias")
    },
}

_SINGLE = {
    "embed.weight": "model.language_model.embed_tokens.weight",
    "ln_final.weight": "model.language_model.norm.weight",
    "unembed.weight": "lm_head.weight",
    "vision.class_embedding": "model.vision_tower.embeddings.class_embedding",
    "vision.patch_embedding.weight": "model.vision_tower.embeddings.patch_embedding.weight",
    "vision.position_embedding.weight": "model.vision_tower.embeddings.position_embedding.weight",
    "vision.ln_pre.weight": "model.vision_tower.pre_layrnorm.weight",
    "vision.ln_pre.bias": "model.vision_tower.pre_layrnorm.bias",
}


def checkpoint_name(parameter: str) -> str:
    """The checkpoint's canonical name of one of our parameters (``blocks.0.attn.q_proj.weight`` → …)."""
    if parameter in _SINGLE:
        return _SINGLE[parameter]
    parts = parameter.split(".")
    if parts[0] == "blocks":
        return f"model.language_model.layers.{parts[1]}.{_DECODER_LAYER['.'.join(parts[2:])]}"
    if parts[:2] == ["vision", "blocks"]:
        return f"model.vision_tower.encoder.layers.{parts[2]}.{_VISION_LAYER['.'.join(parts[3:])]}"
    return parameter.replace("projector.", "model.multi_modal_projector.", 1)


def expected_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of every tensor that the module needs."""
    return {checkpoint_name(name): tuple(p.shape) for name, p in module.named_parameters()}


def unused_names(cfg: ModelConfig, names: Iterable[str]) -> set[str]:
    """Names of the tower's tensors that no image feature depends on (layers above the one LLaVA reads)."""
    used = max(layer % (cfg.vision.n_layers + 1) for layer in cfg.vision.feature_layers)
    prefix = "model.vision_tower.encoder.layers."
    return {n for n in names if n.startswith(prefix) and int(n.removeprefix(prefix).split(".")[0]) >= used}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Assigns checkpoint tensors to a module's parameters; nothing is copied.

    Args:
        module: a model built on the meta device.
        tensors: canonical name → tensor; names and shapes already checked.
    """
    state = {
        name: nn.Parameter(tensors[checkpoint_name(name)].detach()) for name, _ in module.named_parameters()
    }
    module.load_state_dict(state, assign=True, strict=True)
