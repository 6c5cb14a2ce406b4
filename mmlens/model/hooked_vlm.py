"""HookedVLM: a LLaVA-family model with a hook point on every activation.

The pass, top to bottom: image → ``vision`` → ``projector`` → image features; token embeddings with the features
in place of the image tokens (``hook_embed``) → ``blocks`` → ``ln_final`` → ``unembed`` → logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mmlens.config import ModelConfig
from mmlens.errors import InputError, MissingPixels
from mmlens.inputs import Inputs, prepare
from mmlens.loading import check_finite, check_tensors, fingerprint, named_tensors_of, open_checkpoint
from mmlens.model.attention import LayerCache
from mmlens.model.finite import raise_if_not_finite
from mmlens.model.layer import decoder_layer
from mmlens.model.linear import Embedding, Linear
from mmlens.model.masks import CausalMask
from mmlens.model.norm import RMSNorm
from mmlens.model.projector import Projector
from mmlens.model.rotary import rope_table
from mmlens.model.runnable import Runnable
from mmlens.model.views import WeightViews
from mmlens.model.vision.clip import VisionTower
from mmlens.model.weights import checkpoint_name, expected_shapes, fill, unused_names

_FINITE_CHECK_BYTES = 2**30
"""Larger checkpoints are not read through at load; their logits are checked instead."""


class HookedVLM(WeightViews, Runnable):
    """A vision-language model whose every activation can be read and written.

    Make one with :meth:`from_pretrained` or :meth:`from_hf`.

    Attributes:
        cfg: shape and constants, with TransformerLens's field names.
        processor: the checkpoint's processor, or None.
        model_id: name, path or hub id it came from.
        revision: commit of a hub checkpoint, or None.
        eos_token_ids: tokens that end a generation.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        processor: Any = None,
        model_id: str = "unnamed",
        revision: str | None = None,
        eos_token_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.processor = processor
        self.model_id, self.revision = model_id, revision
        self.eos_token_ids = tuple(cfg.eos_token_ids if eos_token_ids is None else eos_token_ids)
        self.vision = VisionTower(cfg.vision)
        self.projector = Projector(cfg)
        self.hook_image_features = HookPoint()
        self.embed = Embedding(cfg.d_vocab, cfg.d_model)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(decoder_layer(cfg) for _ in range(cfg.n_layers))
        self.ln_final = RMSNorm(cfg.d_model, cfg.eps)
        self.unembed = Linear(cfg.d_model, cfg.d_vocab, bias=False)
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
    ) -> "HookedVLM":
        """Loads a checkpoint; its files stay memory-mapped.

        Args:
            name_or_path: an embedded model (``"scenes"``), a local folder, or a hub id.
            dtype: dtype to keep the weights in; None keeps the stored one (no copy). Half precision computes
                in float32 on a CPU, in its own dtype elsewhere.
            device: where to put the weights; None is the CPU.
            revision: branch, tag or commit of a hub checkpoint.

        Raises:
            CheckpointError: not found, unreadable, or tensors missing, extra or misshapen.
            UnsupportedArchitecture: a model family that mmlens does not know.
            NonFiniteError: NaN or infinity in the weights (checked at load up to 1 GiB of weights).
        """
        checkpoint = open_checkpoint(name_or_path, revision=revision)
        cfg = ModelConfig.from_hf(checkpoint.hf_config)
        tensors = checkpoint.tensors
        used = {name: tensors[name] for name in tensors.keys() - unused_names(cfg, tensors)}
        model = cls._filled(
            cfg,
            used,
            processor=checkpoint.processor(),
            model_id=checkpoint.model_id,
            revision=checkpoint.revision,
        )
        if sum(p.nbytes for p in model.parameters()) <= _FINITE_CHECK_BYTES:
            check_finite(model.named_tensors())
        return model if dtype is None and device is None else model.to(device=device, dtype=dtype)

    @classmethod
    def from_hf(cls, hf_model: Any, processor: Any = None) -> "HookedVLM":
        """Makes a hooked model that shares the weights of a Hugging Face model in memory.

        Args:
            hf_model: a ``LlavaForConditionalGeneration``; it is read, never changed.
            processor: its processor, needed to prepare prompts and images.
        """
        cfg = ModelConfig.from_hf(hf_model.config)
        tensors = named_tensors_of(hf_model)
        used = {name: tensors[name] for name in tensors.keys() - unused_names(cfg, tensors)}
        eos = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
        model_id = getattr(hf_model, "name_or_path", "") or type(hf_model).__name__
        return cls._filled(
            cfg,
            used,
            processor=processor,
            model_id=model_id,
            eos_token_ids=[eos] if isinstance(eos, int) else eos,
        )

    @classmethod
    def _filled(cls, cfg: ModelConfig, tensors: Mapping[str, Tensor], **described: Any) -> "HookedVLM":
        with torch.device("meta"):
            model = cls(cfg, **described)
        fill(model, check_tensors(tensors, expected_shapes(model), tied=cfg.tied_embeddings))
        return model.eval()

    def named_tensors(self) -> dict[str, Tensor]:
        """The weights under their canonical checkpoint names, sharing storage."""
        return {
            checkpoint_name(name): p.detach() for name, p in self.named_parameters(remove_duplicate=False)
        }

    def weight_fingerprint(self) -> str:
        """A short hash of the weights, for provenance; see :func:`mmlens.loading.fingerprint`."""
        return fingerprint(self.named_tensors())

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or None."""
        return getattr(self.processor, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype activations are computed in: the weights' own, but float32 for half precision on a CPU."""
        stored = self.embed.weight.dtype
        half = stored in (torch.float16, torch.bfloat16)
        return torch.float32 if half and self.device.type == "cpu" else stored

    @property
    def fused_attention(self) -> bool:
        """Whether layers without an attention hook use the fused kernel; False reproduces eager attention."""
        return all(block.attn.fused for block in self.blocks)

    @fused_attention.setter
    def fused_attention(self, fused: bool) -> None:
        for block in (*self.vision.blocks, *self.blocks):
            block.attn.fused = fused

    def prepare(self, prompts: Any, **options: Any) -> Inputs:
        """Prompts, chat messages or a processor's output → :class:`Inputs` on the model's device.

        See :func:`mmlens.inputs.prepare` for what it accepts and raises.
        """
        return prepare(prompts, processor=self.processor, cfg=self.cfg, **options).to(self.device)

    def as_inputs(self, inputs: Any, batch_feature: Mapping[str, Any]) -> Inputs:
        """What every run method accepts, as ``Inputs``: ``Inputs``, prompts, or a processor's tensors."""
        if isinstance(inputs, Inputs):
            if batch_feature:
                raise InputError(
                    f"give Inputs or a processor's tensors, not both (also got {sorted(batch_feature)})."
                )
            return inputs if inputs.device == self.device else inputs.to(self.device)
        if inputs is None and not batch_feature:
            raise InputError(
                "nothing to run: give Inputs (model.prepare(…)) or a processor's tensors as keywords."
            )
        if isinstance(inputs, Tensor):
            raise MissingPixels(
                "a bare tensor of token ids has no pixels; a vision-language model would read the raw image tokens. "
                "Give model.prepare(prompts), or the processor's whole output: model(**batch_feature)."
            )
        return self.prepare(inputs if inputs is not None else dict(batch_feature))

    def image_features(self, inputs: Inputs) -> Float[Tensor, "image_token d_model"] | None:
        """Embeddings of all image tokens of the batch, in order; None without images."""
        below = (n for n in self.hook_dict if n.startswith(("vision.", "projector.")))
        hooked = any(self.hook_dict[name].has_hooks() for name in below)
        if inputs.image_features is not None and not (hooked and inputs.pixel_values is not None):
            return self.hook_image_features(inputs.image_features.to(self.dtype).clone())
        if inputs.pixel_values is None:
            return None
        features = self.projector(self.vision(inputs.pixel_values, self.dtype))
        return self.hook_image_features(features.flatten(0, 1))

    def encode_images(self, inputs: Inputs) -> Inputs:
        """The same inputs with the image features computed, so that later runs skip the tower."""
        inputs = self.as_inputs(inputs, {})
        with torch.no_grad():
            features = self.image_features(inputs)
        return inputs if features is None else replace(inputs, image_features=features)

    def embed_inputs(self, inputs: Inputs) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings with the image features in place of the image tokens (``hook_embed``)."""
        ids = inputs.input_ids.masked_fill(
            inputs.image_mask, 0
        )  # the image token may lie outside the vocabulary
        embedded = self.embed.rows(ids, self.dtype)
        features = self.image_features(inputs)
        if features is not None:
            embedded = embedded.masked_scatter(inputs.image_mask[..., None], features)
        return self.hook_embed(embedded)

    def decode(
        self,
        residual: Float[Tensor, "batch query d_model"],
        inputs: Inputs,
        *,
        layers: range,
        caches: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """Runs decoder layers over the last columns of the sequence.

        Args:
            residual: residual stream before ``layers``, of the last ``query`` columns.
            inputs: the whole sequence; gives positions and padding.
            layers: which layers to run.
            caches: keys and values of the earlier columns, one per layer, extended in place.
        """
        n_query = residual.shape[1]
        real = inputs.attention_mask.bool()
        mask = CausalMask(real=None if bool(real.all()) else real, n_query=n_query, n_key=inputs.n_pos)
        rope = rope_table(self.cfg, inputs.position_ids[:, -n_query:], residual.dtype)
        for layer in layers:
            cache = None if caches is None else caches[layer]
            residual = self.blocks[layer](residual, mask=mask, rope=rope, cache=cache)
        return residual

    def forward(
        self,
        inputs: Any = None,
        *,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        residual: Float[Tensor, "batch pos d_model"] | None = None,
        logits_pos: Literal["final"] | None = None,
        **batch_feature: Any,
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, "batch pos d_model"]:
        """Logits at every position, ``[batch, pos, d_vocab]``.

        Args:
            inputs: :class:`Inputs`, or anything :meth:`prepare` accepts.
            stop_at_layer: return the residual stream before this layer instead (``[batch, pos, d_model]``);
                negative numbers count from the end.
            start_at_layer: begin at this layer, from ``residual``; the tower and the layers below do not run.
            residual: residual stream before ``start_at_layer``.
            logits_pos: ``"final"`` unembeds the last position only: ``[batch, 1, d_vocab]``.
            batch_feature: a processor's tensors as keywords, instead of ``inputs``.

        Raises:
            InputError: see :meth:`prepare`; or ``residual`` without ``start_at_layer``, or the reverse.
            NonFiniteError: the result holds NaN or infinity; names the first layer where it appears.
        """
        inputs = self.as_inputs(inputs, batch_feature)
        first = self._layer_number(start_at_layer, default=0)
        stop = self._layer_number(stop_at_layer, default=self.cfg.n_layers)
        if (residual is None) != (start_at_layer is None):
            raise InputError("start_at_layer and residual belong together: give both or neither.")
        if residual is None:
            residual = self.embed_inputs(inputs)
        elif residual.shape != (inputs.batch_size, inputs.n_pos, self.cfg.d_model):
            raise InputError(
                f"residual {tuple(residual.shape)} does not fit the inputs {tuple(inputs.input_ids.shape)}."
            )
        out = self.decode(residual, inputs, layers=range(first, stop))
        if stop_at_layer is None:
            out = self.logits(out[:, -1:] if logits_pos == "final" else out)
        raise_if_not_finite(self, out, inputs)
        return out

    def logits(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Final norm and unembedding of the residual stream after the last layer."""
        return self.unembed(self.ln_final(residual))

    def _layer_number(self, layer: int | None, *, default: int) -> int:
        if layer is None:
            return default
        number = layer + self.cfg.n_layers if layer < 0 else layer
        if not 0 <= number <= self.cfg.n_layers:
            raise InputError(
                f"layer {layer} does not exist; this model has layers 0 to {self.cfg.n_layers - 1}."
            )
        return number
