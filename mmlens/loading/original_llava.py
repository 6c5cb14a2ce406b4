"""Checkpoints written by the original LLaVA repository: their configuration, tower and processor.

That repository subclasses the Llama model: ``config.json`` is a Llama configuration with ``mm_*`` fields, the
CLIP tower is usually not stored but named (``mm_vision_tower``), and ``<image>`` is no token of the
vocabulary but the placeholder -200. Here ``<image>`` becomes the first id after the vocabulary; it has no row
in the embedding, so a model must embed another token in its place (the image features replace it anyway).

Source: https://github.com/haotian-liu/LLaVA, llava/model and llava/conversation.py (``vicuna_v1``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlens.errors import CheckpointError, UnsupportedArchitecture
from mmlens.loading.hub import locate
from mmlens.loading.names import NamedTensors
from mmlens.loading.safetensors_files import open_tensors

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaProcessor

TOWER_PREFIX = "model.vision_tower."

_TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range"),
    *("rms_norm_eps", "attention_bias", "mlp_bias"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_use_im_start_end": (False, None),
    "mm_resampler_type": (None,),
    "image_aspect_ratio": ("pad", "square", None),
    "mm_patch_merge_type": ("flat", None),
}
"""Settings that change the computation, with the values that are implemented."""

_CLIP_SIZES = {"clip-vit-large-patch14-336": 336, "clip-vit-large-patch14": 224}
"""Towers whose configuration is known without their folder: ViT-L/14 at two image sizes."""

_VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def is_original_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` was written by the original repository rather than by transformers."""
    return "mm_vision_tower" in raw and "vision_config" not in raw


def read_config(raw: Mapping[str, Any], folder: Path) -> "LlavaConfig":
    """Translates a ``config.json`` of the original repository.

    Args:
        raw: the parsed file.
        folder: of the checkpoint; a relative ``mm_vision_tower`` is looked for here first.

    Raises:
        UnsupportedArchitecture: not a Llama decoder, or a setting such as anyres tiles or another projector.
        CheckpointError: the vision tower cannot be found.
    """
    from transformers import LlamaConfig, LlavaConfig

    if raw.get("model_type") not in ("llava", "llava_llama"):
        raise UnsupportedArchitecture(
            f"model_type {raw.get('model_type')!r} in the original LLaVA format is not supported; known: "
            "llava, llava_llama. Other decoders need a converted checkpoint."
        )
    for field, known in _EXPECTED.items():
        if raw.get(field) not in known:
            raise UnsupportedArchitecture(
                f"{field}={raw.get(field)!r} is not supported in the original LLaVA format; expected one of "
                f"{known}. Only the LLaVA-1.5 architecture is."
            )
    text_fields = {field: raw[field] for field in _TEXT_FIELDS if field in raw}
    text = LlamaConfig(**text_fields, rope_parameters=_rope_parameters(raw))
    return LlavaConfig(
        text_config=text,
        vision_config=_vision_config(str(raw["mm_vision_tower"]), folder),
        image_token_index=raw["vocab_size"],
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full"
        if raw.get("mm_vision_select_feature") == "cls_patch"
        else "default",
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
    )


def _rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Joins ``rope_theta`` and ``rope_scaling``, which configurations of that time kept apart."""
    scaling = dict(raw.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    return {"rope_type": kind, "rope_theta": raw.get("rope_theta") or 10_000.0, **scaling}


def _vision_config(tower: str, folder: Path) -> Any:
    from transformers import AutoConfig, CLIPVisionConfig

    known_size = _CLIP_SIZES.get(tower.rstrip("/").rsplit("/", 1)[-1])
    if known_size is not None and not (folder / tower).is_dir():
        return CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            image_size=known_size,
            projection_dim=768,
        )
    config = AutoConfig.from_pretrained(_tower_folder(tower, folder), trust_remote_code=False)
    return getattr(config, "vision_config", config)


def _tower_folder(tower: str, folder: Path) -> Path:
    beside = folder / tower
    if beside.is_dir():
        return beside
    try:
        return locate(tower).folder
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} is in the original LLaVA format and names its vision tower {tower!r} "
            f"(mm_vision_tower), which cannot be found: {error} Or put the tower's folder into the "
            "checkpoint folder under that name, or use a converted checkpoint such as "
            "llava-hf/llava-1.5-7b-hf."
        ) from error


def tower_tensors(raw: Mapping[str, Any], folder: Path) -> NamedTensors:
    """The tensors of the vision tower that ``config.json`` names, by canonical name.

    The tower's folder may hold a whole CLIP model; its text half is left alone.
    """
    tensors = open_tensors(_tower_folder(str(raw["mm_vision_tower"]), folder))
    return {name: tensors[name] for name in tensors if name.startswith(TOWER_PREFIX)}


def build_processor(raw: Mapping[str, Any], folder: Path, config: "LlavaConfig") -> "LlavaProcessor":
    """A processor that prepares prompts and images as the original repository does.

    Images are padded to a square with the mean colour where the checkpoint asks for it
    (``image_aspect_ratio="pad"``), unlike in the converted llava-hf checkpoints, which crop the centre.

    Args:
        raw: the parsed ``config.json``.
        folder: holds the tokenizer.
        config: as translated by ``read_config``.

    Raises:
        CheckpointError: the tokenizer's size does not match the configuration's vocabulary.
    """
    from transformers import AutoTokenizer, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, padding_side="left", config=config
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    if image_id != config.image_token_id:
        raise CheckpointError(
            f"the tokenizer in {folder} gives '<image>' the id {image_id}, expected {config.image_token_id} "
            "(the first id after the vocabulary). Tokenizer and config.json do not belong together."
        )
    side = config.vision_config.image_size  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    images = LlavaImageProcessorPil(
        do_pad=raw.get("image_aspect_ratio") == "pad",
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
    )
    return LlavaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=_VICUNA_TEMPLATE)
