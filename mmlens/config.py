"""Model configuration: TransformerLens field names, read from Hugging Face configurations.

``ModelConfig`` is all that the rest of mmlens knows about a checkpoint's shape. A new family adds a reader to
``_READERS``; nothing else in this file changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmlens.errors import ConfigError, UnsupportedArchitecture

ActName = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"]

_ACT_NAMES: dict[str, ActName] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def act_name(hf_name: str) -> ActName:
    """Our name of a Hugging Face activation; ConfigError if it is not one we implement."""
    if hf_name not in _ACT_NAMES:
        raise ConfigError(f"activation {hf_name!r} is not supported; known: {', '.join(sorted(_ACT_NAMES))}.")
    return _ACT_NAMES[hf_name]


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary position embedding: base wavelength and, where the checkpoint scales it, how.

    Attributes:
        base: theta, the base of the geometric series of wavelengths (in tokens).
        kind: ``default``, ``linear`` or ``llama3`` (frequency-dependent scaling of Llama 3.1).
        factor: how many times the context was stretched (``linear`` and ``llama3``).
        low_freq_factor: llama3 only; wavelengths longer than ``original_n_ctx / low_freq_factor`` are stretched.
        high_freq_factor: llama3 only; wavelengths shorter than ``original_n_ctx / high_freq_factor`` are kept.
        original_n_ctx: llama3 only; context length before stretching, in tokens.
    """

    base: float = 10_000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_n_ctx: int = 8192

    @classmethod
    def from_hf(cls, text_config: Any) -> "RotaryConfig":
        """Reads ``rope_parameters`` (transformers 5) of a text configuration.

        Raises:
            ConfigError: the checkpoint uses a rotary variant that is not implemented.
        """
        rope: Mapping[str, Any] = getattr(text_config, "rope_parameters", None) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        base = float(rope.get("rope_theta", getattr(text_config, "rope_theta", 10_000.0) or 10_000.0))
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError("partial_rotary_factor != 1 is not supported for this family.")
        if kind == "default":
            return cls(base=base)
        if kind == "linear":
            return cls(base=base, kind="linear", factor=float(rope["factor"]))
        if kind == "llama3":
            return cls(
                base=base,
                kind="llama3",
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_n_ctx=int(rope["original_max_position_embeddings"]),
            )
        raise ConfigError(f"rotary variant {kind!r} is not supported; known: default, linear, llama3.")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower (a CLIP vision transformer).

    Attributes:
        feature_layers: index into the tower's hidden states whose outputs become image features (``-2``:
            the output of the last layer but one); several are concatenated along the width.
        drop_cls: whether the class token is left out of the image features.
        image_size: side of the square input, in pixels.
        patch_size: side of one cell, in pixels of the resized image.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    eps: float
    act_fn: ActName
    image_size: int
    patch_size: int
    feature_layers: tuple[int, ...] = (-2,)
    drop_cls: bool = True

    @property
    def grid(self) -> int:
        """Image cells along one side."""
        return self.image_size // self.patch_size

    @property
    def n_pos(self) -> int:
        """Positions inside the tower: all cells and the class token."""
        return self.grid**2 + 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and constants of a vision-language model, with TransformerLens's field names.

    Attributes:
        architecture: Hugging Face class name of the checkpoint.
        n_key_value_heads: key-value heads; equal to ``n_heads`` when heads are not grouped.
        eps: added to the mean square inside RMSNorm.
        image_token_id: token whose embedding is replaced by an image feature.
        projector_act_fn: activation between the projector's two layers.
        tied_embeddings: whether the unembedding shares the embedding's weights.
    """

    architecture: str
    text_model_type: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    eps: float
    act_fn: ActName
    rotary: RotaryConfig
    vision: VisionConfig
    image_token_id: int
    projector_act_fn: ActName = "gelu"
    projector_bias: bool = True
    attn_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    # Constants that transformer_lens.ActivationCache and its plots ask of a configuration.
    attn_only: bool = field(default=False, init=False)
    normalization_type: str = field(default="RMS", init=False)
    positional_embedding_type: str = field(default="rotary", init=False)
    is_multimodal: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Rejects shapes that no attention layer can have."""
        if self.n_heads % self.n_key_value_heads:
            raise ConfigError(
                f"{self.n_heads} query heads cannot share {self.n_key_value_heads} key-value heads evenly."
            )
        if self.d_head % 2:
            raise ConfigError(f"d_head={self.d_head} is odd; rotary embedding needs pairs.")

    @property
    def rotary_base(self) -> float:
        """TransformerLens's name of the rotary base."""
        return self.rotary.base

    @classmethod
    def from_hf(cls, hf_config: Any) -> "ModelConfig":
        """Reads a Hugging Face configuration object.

        Args:
            hf_config: a ``transformers`` configuration, as in ``hf_model.config``.

        Raises:
            UnsupportedArchitecture: no reader for this ``model_type``.
            ConfigError: a setting of a known family that is not implemented.
        """
        model_type = getattr(hf_config, "model_type", None)
        if model_type not in _READERS:
            raise UnsupportedArchitecture(
                f"model_type {model_type!r} is not supported; known: {', '.join(sorted(_READERS))}. "
                "A text-only checkpoint or another family cannot be loaded as a LLaVA."
            )
        return _READERS[model_type](hf_config)


def _read_clip(vision: Any, feature_layers: tuple[int, ...], drop_cls: bool) -> VisionConfig:
    if vision.model_type != "clip_vision_model":
        raise UnsupportedArchitecture(
            f"vision tower {vision.model_type!r} is not supported; known: clip_vision_model."
        )
    return VisionConfig(
        n_layers=vision.num_hidden_layers,
        n_heads=vision.num_attention_heads,
        d_model=vision.hidden_size,
        d_head=vision.hidden_size // vision.num_attention_heads,
        d_mlp=vision.intermediate_size,
        eps=vision.layer_norm_eps,
        act_fn=act_name(vision.hidden_act),
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        feature_layers=feature_layers,
        drop_cls=drop_cls,
    )


def _read_llava(hf: Any) -> ModelConfig:
    text = hf.text_config
    if text.model_type != "llama":
        raise UnsupportedArchitecture(f"LLaVA over {text.model_type!r} is not supported; known: llama.")
    layers = hf.vision_feature_layer
    eos = text.eos_token_id
    return ModelConfig(
        architecture="LlavaForConditionalGeneration",
        text_model_type=text.model_type,
        n_layers=text.num_hidden_layers,
        n_heads=text.num_attention_heads,
        n_key_value_heads=text.num_key_value_heads,
        d_model=text.hidden_size,
        d_head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        d_mlp=text.intermediate_size,
        d_vocab=text.vocab_size,
        n_ctx=text.max_position_embeddings,
        eps=text.rms_norm_eps,
        act_fn=act_name(text.hidden_act),
        rotary=RotaryConfig.from_hf(text),
        vision=_read_clip(
            hf.vision_config,
            feature_layers=(layers,) if isinstance(layers, int) else tuple(layers),
            drop_cls=hf.vision_feature_select_strategy == "default",
        ),
        image_token_id=hf.image_token_id,
        projector_act_fn=act_name(hf.projector_hidden_act),
        projector_bias=hf.multimodal_projector_bias,
        attn_bias=bool(text.attention_bias),
        mlp_bias=bool(text.mlp_bias),
        tied_embeddings=bool(hf.tie_word_embeddings),
        bos_token_id=text.bos_token_id,
        eos_token_ids=() if eos is None else (eos,) if isinstance(eos, int) else tuple(eos),
    )


_READERS: dict[str, Callable[[Any], ModelConfig]] = {"llava": _read_llava}
