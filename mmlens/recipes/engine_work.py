"""Floating-point operations of a head mask: by the prefix engine, at least, and by a whole forward pass.

Counted are matrix products and attention, a multiply-add as two operations; norms, rotary embedding, activation
functions and the merge of the segments are left out (below 1 %), and so is what is done once per prompt. With

    d, m      width of the residual stream and of the MLP
    H, K, h   heads, key-value heads, width of a head
    P, N, S   tokens before the suffix that are no image tokens, image tokens, tokens of the suffix
    L         layers

the parts of one layer, for one row (a mask, or what all masks share) and n queries, are

    queries                     2 n d H h
    keys and values             4 S d K h
    own segment                 4 n H h (P + S)
    image segment               4 n H h N
    output projection           2 n H h d
    MLP                         6 n d m

n is S, and 1 in the last layer. A batch of B masks whose first ablated layer is f runs the layers f … L−1. In layer f
the first four parts have one row for all masks; everywhere else all parts have B rows, the image segment only for the
heads that read it: R of B H / K per key-value head, another number in each layer (``image_segment.readers_of``, as on a
CPU; a GPU reads the image for all). The unembedding of the c vocabulary columns that the metric reads adds 2 d c per
mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.engine.image_segment import readers_of


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """Lengths of a prompt: P, N and S."""

    n_system: int
    n_image: int
    n_suffix: int

    @property
    def n_pos(self) -> int:
        """All tokens."""
        return self.n_system + self.n_image + self.n_suffix


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations.

    Attributes:
        linear: matrix products with weights, the unembedding included.
        own: attention to system and suffix.
        image: attention to image tokens.
    """

    linear: float = 0.0
    own: float = 0.0
    image: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.own + self.image

    def __add__(self, other: "Work") -> "Work":
        return Work(
            linear=self.linear + other.linear, own=self.own + other.own, image=self.image + other.image
        )

    def times(self, factor: float | int) -> "Work":
        """As many times this work."""
        return Work(linear=self.linear * factor, own=self.own * factor, image=self.image * factor)


def batch_work(
    cfg: ModelConfig,
    parts: PromptParts,
    *,
    n_masks: int,
    start: int = 0,
    n_columns: int = 1,
    readers: Sequence[int] | None = None,
) -> Work:
    """What the prefix engine executes for one batch.

    Args:
        cfg: the model.
        parts: the prompt.
        n_masks: B, padding included.
        start: f.
        n_columns: c.
        readers: R of every layer; None lets all heads of all masks read the image.
    """
    total = Work(linear=2.0 * n_masks * cfg.d_model * n_columns)
    everyone = n_masks * cfg.n_heads / cfg.n_key_value_heads
    for layer in range(start, cfg.n_layers):
        shared = layer == start
        n_query = 1 if layer == cfg.n_layers - 1 else parts.n_suffix
        n_own = parts.n_system + parts.n_suffix
        rows = 1 if shared else n_masks
        share = 1.0 if readers is None or (shared and n_masks > 1) else readers[layer] / everyone
        read = _projections(cfg, parts.n_suffix, n_query) + _attention(
            cfg, n_query, n_own, parts.n_image * share
        )
        total = total + read.times(rows) + _behind_attention(cfg, n_query).times(n_masks)
    return total


def executed_work(
    cfg: ModelConfig,
    parts: PromptParts,
    masks: Bool[Tensor, "mask layer head"],
    batch_size: int,
    *,
    n_columns: int = 1,
    on_cpu: bool = True,
) -> Work:
    """What the prefix engine executes for these masks, per mask: its batches in its order, the last one padded.

    Args:
        cfg: the model.
        parts: the prompt.
        masks: 1 = kept.
        batch_size: masks run together.
        n_columns: vocabulary columns that the metric reads.
        on_cpu: whether closed heads are left out of the image segment.
    """
    ablates = ~masks.all(dim=2)
    first = torch.where(ablates.any(dim=1), ablates.int().argmax(dim=1), masks.shape[1])
    rows = min(batch_size, len(masks))
    total = Work()
    for batch in first.argsort(stable=True).split(batch_size):
        padded = torch.cat([batch, batch[-1:].expand(rows - len(batch))])
        by_layer = masks[padded].unbind(1)
        readers = [len(readers_of(keep, cfg.n_key_value_heads)) for keep in by_layer] if on_cpu else None
        start = int(first[batch].min())
        total = total + batch_work(
            cfg, parts, n_masks=rows, start=start, n_columns=n_columns, readers=readers
        )
    return total.times(1 / len(masks))


def least_work(cfg: ModelConfig, parts: PromptParts, *, n_columns: int = 1) -> Work:
    """The algorithm's work for one mask that ablates something in layer 0, alone and with a causal own segment.

    A batch of many saves the shared parts of its first layer against this, and computes the whole own segment.
    """
    total = Work(linear=2.0 * cfg.d_model * n_columns)
    for layer in range(cfg.n_layers):
        last = layer == cfg.n_layers - 1
        n_query = 1 if last else parts.n_suffix
        keys = parts.n_system + (parts.n_suffix if last else (parts.n_suffix + 1) / 2)
        total = total + _projections(cfg, parts.n_suffix, n_query)
        total = total + _attention(cfg, n_query, keys, parts.n_image) + _behind_attention(cfg, n_query)
    return total


def forward_work(cfg: ModelConfig, parts: PromptParts, *, all_logits: bool = True) -> Work:
    """One whole forward pass of the decoder, as Hugging Face's eager attention does it: every query scores every key.

    Args:
        cfg: the model.
        parts: the prompt.
        all_logits: whether every position is unembedded, not only the last.
    """
    n = parts.n_pos
    layer = _projections(cfg, n, n) + _attention(cfg, n, n - parts.n_image, parts.n_image)
    layers = (layer + _behind_attention(cfg, n)).times(cfg.n_layers)
    return layers + Work(linear=2.0 * (n if all_logits else 1) * cfg.d_model * cfg.d_vocab)


def _projections(cfg: ModelConfig, n: int, n_query: int) -> Work:
    """Keys and values of n positions, queries of the last of them."""
    widths = n_query * cfg.n_heads + 2 * n * cfg.n_key_value_heads
    return Work(linear=2.0 * cfg.d_model * cfg.d_head * widths)


def _attention(cfg: ModelConfig, n_query: int, n_own: float | int, n_image: float | int) -> Work:
    each = 4.0 * n_query * cfg.n_heads * cfg.d_head
    return Work(own=each * n_own, image=each * n_image)


def _behind_attention(cfg: ModelConfig, n: int) -> Work:
    return Work(linear=2.0 * n * cfg.d_model * (cfg.n_heads * cfg.d_head + 3 * cfg.d_mlp))
