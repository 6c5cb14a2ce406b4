"""Head masks by other people's tools, each as its documentation would have it; knockout, one prompt.

Every class takes head masks and gives the answer's logit under each, as ``Naive`` does. Each has a copy of the decoder
of its own: TransformerLens rewrites the model that it wraps. All read the same embeddings, the image's included.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import DynamicCache, PreTrainedTokenizerFast

from tests.benchmarks.naive import CLOSED, HeadEdges
from tests.benchmarks.shape import Bench


class TransformerLens:
    """TransformerLens 4.3: scores of the ablated heads overwritten in place at ``hook_attn_scores``."""

    def __init__(self, bench: Bench) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.embeds, self.answer, self.edges = bench.embeds, bench.answer, HeadEdges(bench)
        self.bridge = TransformerBridge.boot_transformers(
            "benchmark", hf_model=bench.decoder(), tokenizer=_tokenizer()
        )

    @torch.no_grad()
    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(mask) for mask in masks])

    def one(self, mask: torch.Tensor) -> torch.Tensor:
        hooks: list[Any] = [
            (f"blocks.{layer}.attn.hook_attn_scores", self.closer(keep)) for layer, keep in enumerate(mask)
        ]
        logits = self.bridge.run_with_hooks(self.embeds, fwd_hooks=hooks)
        return logits[0, -1, self.answer].double()

    def closer(self, keep: torch.Tensor) -> Callable[..., torch.Tensor]:
        def close(scores: torch.Tensor, hook: Any) -> torch.Tensor:
            scores[:, ~keep, self.edges.text, self.edges.image] = CLOSED
            return scores

        return close


class Nnsight:
    """nnsight 0.8: every layer's attention is given another ``attention_mask`` inside one trace per head mask."""

    def __init__(self, bench: Bench) -> None:
        from nnsight import NNsight

        self.embeds, self.answer, self.edges = bench.embeds, bench.answer, HeadEdges(bench)
        self.traced = NNsight(bench.decoder())

    @torch.no_grad()
    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.one(mask) for mask in masks])

    def one(self, mask: torch.Tensor) -> torch.Tensor:
        traced, edges = self.traced, self.edges
        with traced.trace(inputs_embeds=self.embeds):
            for layer, keep in enumerate(mask):
                attention = traced.model.layers[layer].self_attn
                args, kwargs = attention.inputs
                kwargs["attention_mask"] = edges.of(keep)
                attention.inputs = (args, kwargs)
            logits = traced.output.logits.save()
        return logits[0, -1, self.answer].double()


class ExpandedCache:
    """Hugging Face with a cache: the prefix once, then B suffixes as a batch over the cache expanded to B rows.

    ``DynamicCache`` concatenates, so each layer's prefix is copied B times in every batch. The masks are
    [B, head, query, key], one per layer, by forward pre-hooks; only the last position is unembedded.
    """

    def __init__(self, bench: Bench, batch_size: int, kernel: Literal["eager", "sdpa"] = "sdpa") -> None:
        self.answer, self.batch_size = bench.answer, batch_size
        self.decoder: Any = bench.decoder(kernel)
        self.edges = HeadEdges(bench)
        start = self.edges.text.start
        self.suffix = bench.embeds[:, start:]
        self.causal = self.edges.causal[:, :1, start:]
        with torch.no_grad():
            cache = self.decoder(inputs_embeds=bench.embeds[:, :start], use_cache=True).past_key_values
        self.prefix = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.batch(some) for some in masks.split(self.batch_size)])

    def batch(self, masks: torch.Tensor) -> torch.Tensor:
        handles = [
            layer.self_attn.register_forward_pre_hook(self.installer(keep), with_kwargs=True, prepend=True)
            for layer, keep in zip(self.decoder.model.layers, masks.unbind(1), strict=True)
        ]
        try:
            logits = self.decoder(
                inputs_embeds=self.suffix.expand(len(masks), -1, -1),
                past_key_values=self.expanded(len(masks)),
                use_cache=True,
                logits_to_keep=1,
            ).logits
        finally:
            for handle in handles:
                handle.remove()
        return logits[:, -1, self.answer].double()

    def expanded(self, n: int) -> DynamicCache:
        """The prefix as views of n rows; the copy is made when a layer appends to it."""
        cache = DynamicCache(config=self.decoder.config)
        layers: Any = cache.layers
        for layer, (k, v) in zip(layers, self.prefix, strict=True):
            layer.lazy_initialization(k, v)
            layer.keys, layer.values = (x.expand(n, -1, -1, -1) for x in (k, v))
        return cache

    def installer(self, keep: torch.Tensor) -> Callable[..., Any]:
        def install(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            mask = self.causal.repeat(*keep.shape, 1, 1)
            mask[..., self.edges.image].masked_fill_(~keep[:, :, None, None], CLOSED)
            return args, kwargs | {"attention_mask": mask}

        return install


def _tokenizer() -> PreTrainedTokenizerFast:
    """TransformerLens asks for one, though only embeddings are given; without a BOS token it is taken as it is."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"?": 0, ".": 1}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token=".", pad_token=".")
