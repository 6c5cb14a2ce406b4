"""Head masks on the unmodified Hugging Face model, written out: an oracle that shares nothing with mmlens.

Every run is a whole forward pass, image tower included, of the batch as the processor gives it. No attention is split
into segments, nothing is kept from one mask to the next, and no position is left out.

- All heads kept: the model as it is.
- ``knockout``: each ``self_attn`` gets a 4-D mask of its own. Where a head is ablated, the edges from text after the
  last image token to image tokens hold the lowest number; all others are the model's own (causal, window, padding).
- Replacing modes: an attention function under a name of its own, given to the decoder by transformers' attention
  interface. It computes scores and values twice, with the model's own and with replaced keys and values, and takes
  for each head and query what its mask says. Queries and keys come rotated, masked, grouped as the family has them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "by_hand"
Given = tuple[Tensor, Tensor]
"""Keys after rotary embedding and values, ``[layer, kv_head, d_head]`` each."""


class ByHand:
    """One batch of one model, to be run under any head mask.

    Args:
        hf: a Hugging Face model with eager attention.
        batch: the processor's tensors.
    """

    def __init__(self, hf: PreTrainedModel, batch: dict[str, Tensor]) -> None:
        self.hf, self.batch = hf, batch
        decoder: Any = hf.get_decoder()
        self.modules = [layer.self_attn for layer in decoder.layers]
        self.layers = {id(module): number for number, module in enumerate(self.modules)}
        ids, config = batch["input_ids"], hf.config
        self.image = ids == getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        columns = torch.arange(ids.shape[1])
        last = torch.where(self.image, columns, -1).amax(dim=1, keepdim=True)
        self.text = columns > last  # after the last image token
        self.seen: list[int] = []

    @torch.no_grad()
    def logits(self, keep: Tensor, baseline: str | Given) -> Tensor:
        """Logits of the last position, ``[batch, d_vocab]``.

        Args:
            keep: ``Bool[layer, head]``.
            baseline: ``knockout``, ``zero``, ``mean_image_tokens``, or keys and values.
        """
        if bool(keep.all()):
            return self._run()
        self.seen = []
        with self._masks(keep) if baseline == "knockout" else self._function(keep, baseline):
            found = self._run()
        assert self.seen == list(range(len(keep)))  # every layer passed here, once
        return found

    def _run(self) -> Tensor:
        return self.hf(**self.batch).logits[:, -1]

    @contextmanager
    def _masks(self, keep: Tensor) -> Iterator[None]:
        def install(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            layer = self.layers[id(module)]
            self.seen.append(layer)
            own = kwargs["attention_mask"]  # [batch, 1, query, key]
            edges = self.text[:, None, :, None] & self.image[:, None, None, :]
            closed = edges & ~keep[layer][None, :, None, None]
            own = own.expand(-1, keep.shape[1], -1, -1)
            return args, kwargs | {"attention_mask": own.masked_fill(closed, torch.finfo(own.dtype).min)}

        handles = [module.register_forward_pre_hook(install, with_kwargs=True) for module in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _function(self, keep: Tensor, baseline: str | Given) -> Iterator[None]:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
        ) -> tuple[Tensor, None]:
            layer = self.layers[id(module)]
            self.seen.append(layer)
            both = []
            for k, v in ((key, value), self._replaced(layer, key, value, baseline)):
                group = query.shape[1] // k.shape[1]
                k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
                scores = query @ k.transpose(2, 3) * options["scaling"]
                if (cap := options.get("softcap")) is not None:
                    scores = torch.tanh(scores / cap) * cap
                both.append((scores + attention_mask).softmax(dim=-1) @ v)
            ablated = ~keep[layer][None, :, None, None] & self.text[:, None, :, None]
            return torch.where(ablated, both[1], both[0]).transpose(1, 2).contiguous(), None

        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, eager_mask)
        self.hf.set_attn_implementation({"text_config": NAME})
        try:
            yield
        finally:
            self.hf.set_attn_implementation({"text_config": "eager"})

    def _replaced(
        self, layer: int, key: Tensor, value: Tensor, baseline: str | Given
    ) -> tuple[Tensor, Tensor]:
        """Keys and values in which all image tokens of a sample hold the same, ``[batch, kv_head, pos, d_head]``."""
        image = self.image[:, None, :, None]
        found = []
        for which, own in enumerate((key, value)):
            if isinstance(baseline, tuple):
                bar = baseline[which][layer][None, :, None, :]
            elif baseline == "zero":
                bar = torch.zeros_like(own[:, :, :1])
            else:
                assert baseline == "mean_image_tokens"
                bar = (own * image).sum(dim=2, keepdim=True) / image.sum(dim=2, keepdim=True)
            found.append(torch.where(image, bar, own))
        return found[0], found[1]
