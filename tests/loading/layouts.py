"""Writes a tiny LLaVA in every layout found in the wild, by explicit prefixes, not by the rules tested."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

Rename = Callable[[str], str]

_LM, _TOWER, _PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."


def _renamer(lm: str, tower: str, projector: str, head: str) -> Rename:
    def rename(name: str) -> str:
        for live, there in ((_LM, lm), (_TOWER, tower), (_PROJECTOR, projector), ("lm_head.", head)):
            if name.startswith(live):
                return there + name.removeprefix(live)
        raise AssertionError(name)

    return rename


def _original(name: str) -> str:
    renamed = _renamer(
        "model.", "model.vision_tower.vision_tower.vision_model.", "model.mm_projector.", "lm_head."
    )(name)
    return renamed.replace("linear_1", "0").replace("linear_2", "2")


LAYOUTS: dict[str, Rename] = {
    "hub-4.51": _renamer(
        "language_model.model.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "language_model.lm_head.",
    ),
    "4.52": _renamer(_LM, "model.vision_tower.vision_model.", _PROJECTOR, "lm_head."),
    "5.23-live": lambda name: name,
    "5.23-saved": _renamer(
        "language_model.model.", "vision_tower.", "multi_modal_projector.", "language_model.lm_head."
    ),
    "original": _original,
}

ORIGINAL_CONFIG = {
    "model_type": "llava",
    "mm_vision_tower": "tower",
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "rope_scaling": None,
    "rope_theta": 5000.0,
}


def live_tensors(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Every parameter of the model under its own (live) name."""
    return dict(model.named_parameters())


def write_tensors(tensors: dict[str, Tensor], folder: Path, n_shards: int = 1) -> None:
    """Writes tensors as one safetensors file or as shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if n_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        own = names[i::n_shards]
        save_file({name: tensors[name] for name in own}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    model: LlavaForConditionalGeneration,
    folder: Path,
    layout: str = "5.23-live",
    n_shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Writes the model in a layout; returns what was written, by live name."""
    live = {name: tensor.to(dtype) for name, tensor in live_tensors(model).items()}
    write_tensors({LAYOUTS[layout](name): tensor for name, tensor in live.items()}, folder, n_shards)
    if layout == "original":
        write_original_config(model, folder)
    else:
        model.config.save_pretrained(folder)
    return live


def write_original_config(model: LlavaForConditionalGeneration, folder: Path, **changes: object) -> None:
    """Writes the config.json of the original repository, and beside it that of its vision tower."""
    folder.mkdir(parents=True, exist_ok=True)
    text = model.config.text_config
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields += ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act", "bos_token_id")
    fields += ("eos_token_id", "pad_token_id", "tie_word_embeddings")
    raw = {**ORIGINAL_CONFIG, **{field: getattr(text, field) for field in fields}, **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    model.config.vision_config.save_pretrained(folder / "tower")
