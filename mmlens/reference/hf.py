"""Interventions on the unmodified Hugging Face model: the oracle that mmlens is held against.

Nothing here uses mmlens's model, hooks or hook compiler. An intervention is read afresh, in columns of the
whole sequence, and carried out by an attention function (``Block``, ``HeadMask``) or a pre-hook on the output
projection (``Zero(at="z")``):

1. resolve every selector over prompt and generated tokens,
2. run the model once over the prompt, then one token at a time over its key-value cache,
3. in each step, act on the columns computed in that step.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.errors import InterventionError, MissingPixels
from mmlens.inputs import Inputs
from mmlens.interventions import Block, HeadMask, ImageKV, Intervention, Zero
from mmlens.reference.attention import AttentionCall, attention_named, attention_replaced, plain_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GENERATED = ("answer", "generated")


def hf_logits(
    hf_model: "PreTrainedModel", inputs: Inputs, interventions: Sequence[Intervention] | Intervention = ()
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the Hugging Face model under interventions, with eager attention and explicit positions.

    Args:
        hf_model: a LLaVA; left as it was.
        inputs: prompts with pixels.
        interventions: ``Zero(at="z")``, ``Block`` and at most one ``HeadMask``.

    Returns:
        Logits at every column; those of padding columns mean nothing.

    Raises:
        InterventionError: an intervention that the oracle does not know.
        MissingPixels: image tokens without pixels (image features alone are not enough here).
    """
    step = _Step(prompt=inputs, so_far=inputs, start=0)
    with _intervened(hf_model, listed(interventions), step):
        return _forward(hf_model, step, cache=None)


def hf_own_logits(
    hf_model: "PreTrainedModel", inputs: Inputs, attention: Literal["eager", "sdpa"] = "eager"
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the Hugging Face model with nothing of ours inside, positions given explicitly.

    Args:
        hf_model: a LLaVA; left as it was.
        inputs: prompts with pixels.
        attention: which of its own attention functions it runs.
    """
    with attention_named(hf_model, attention):
        return _forward(hf_model, _Step(prompt=inputs, so_far=inputs, start=0), cache=None)


def hf_continuation_logits(
    hf_model: "PreTrainedModel",
    inputs: Inputs,
    new_tokens: Int[Tensor, "batch new"],
    interventions: Sequence[Intervention] | Intervention = (),
) -> Float[Tensor, "batch new d_vocab"]:
    """The logits from which given new tokens would be chosen, by cached decoding under interventions.

    Args:
        hf_model: a LLaVA; left as it was.
        inputs: prompts with pixels.
        new_tokens: tokens that follow each prompt; token ``t`` is fed after its own logits are read.
        interventions: as in :func:`hf_logits`; they hold in every step.
    """
    from transformers import DynamicCache

    cache, read = DynamicCache(), []
    step = _Step(prompt=inputs, so_far=inputs, start=0)
    with _intervened(hf_model, listed(interventions), step):
        for n_fed in range(new_tokens.shape[1]):
            if n_fed:
                step.so_far = inputs.extended(new_tokens[:, :n_fed])
                step.start = step.so_far.n_pos - 1
            read.append(_forward(hf_model, step, cache)[:, -1])
    return torch.stack(read, dim=1)


def listed(interventions: Sequence[Intervention] | Intervention) -> list[Intervention]:
    """One intervention or several, as a list."""
    return list(interventions) if isinstance(interventions, Sequence) else [interventions]


@final
@dataclass(kw_only=True)
class _Step:
    """The forward pass that runs now.

    Attributes:
        prompt: what the run started from.
        so_far: prompt and the tokens fed after it.
        start: first column computed in this pass.
    """

    prompt: Inputs
    so_far: Inputs
    start: int

    def columns(self, selector: Any) -> Bool[Tensor, "batch pos"]:
        """Columns of the sequence so far that a selector means; numbers and masks speak of the prompt."""
        grown = self.so_far.n_pos - self.prompt.n_pos
        if isinstance(selector, str):
            if not grown and selector in _GENERATED:
                return torch.zeros_like(self.prompt.input_ids, dtype=torch.bool)
            return self.so_far.mask(selector)
        return torch.nn.functional.pad(self.prompt.mask(selector), (0, grown))

    def queries(self, selector: Any) -> Bool[Tensor, "batch query"]:
        """The selector's columns among those computed now."""
        return self.columns(selector)[:, self.start :]


@torch.no_grad()
def _forward(hf_model: "PreTrainedModel", step: _Step, cache: Any) -> Float[Tensor, "batch query d_vocab"]:
    inputs = step.so_far
    has_images = step.start == 0 and bool(inputs.image_mask.any())
    if has_images and inputs.pixel_values is None:
        raise MissingPixels(
            "the Hugging Face model needs pixel_values; these inputs hold image features only. Give the "
            "inputs as prepare() made them, before encode_images()."
        )
    pixels = inputs.pixel_values if has_images else None
    with embeddable(hf_model, inputs) as input_ids:
        output = hf_model(
            input_ids=input_ids[:, step.start :],
            attention_mask=inputs.attention_mask.to(hf_model.device),
            position_ids=inputs.position_ids[:, step.start :].to(hf_model.device),
            pixel_values=None if pixels is None else pixels.to(hf_model.device, hf_model.dtype),
            past_key_values=cache,
            use_cache=cache is not None,
        )
    return output.logits


@contextmanager
def embeddable(hf_model: "PreTrainedModel", inputs: Inputs) -> Iterator[Int[Tensor, "batch pos"]]:
    """Token ids that the Hugging Face model can embed, for the length of the block.

    In the original LLaVA format the image token lies outside the vocabulary, where Hugging Face looks its
    embedding up before the image features replace it. A token that the prompts do not use then stands in for
    it.
    """
    ids = inputs.input_ids.to(hf_model.device)
    n_rows = len(hf_model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if inputs.image_token_id < n_rows:
        yield ids
        return
    free = int(torch.isin(torch.arange(n_rows), ids.cpu()).logical_not().nonzero()[0])
    before, hf_model.config.image_token_id = hf_model.config.image_token_id, free
    try:
        yield ids.masked_fill(ids == inputs.image_token_id, free)
    finally:
        hf_model.config.image_token_id = before


@contextmanager
def _intervened(
    hf_model: "PreTrainedModel", interventions: list[Intervention], step: _Step
) -> Iterator[None]:
    zeros = [i for i in interventions if isinstance(i, Zero) and i.at == "z"]
    blocks = [i for i in interventions if isinstance(i, Block)]
    masks = [i for i in interventions if isinstance(i, HeadMask)]
    if len(zeros) + len(blocks) + len(masks) != len(interventions) or len(masks) > 1:
        raise InterventionError(
            "the Hugging Face oracle knows Zero(at='z'), Block and at most one HeadMask; given "
            f"{[type(i).__name__ for i in interventions]}."
        )
    attention = _Attention(blocks=blocks, head_mask=masks[0] if masks else None, step=step)
    with ExitStack() as stack:
        stack.enter_context(attention_replaced(hf_model, attention))
        for layer, module in enumerate(decoder_layers(hf_model)):
            pre_hook = _zeroing(zeros, layer, step, head_dim=module.self_attn.head_dim)
            stack.callback(module.self_attn.o_proj.register_forward_pre_hook(pre_hook).remove)
        yield


def decoder_layers(hf_model: "PreTrainedModel") -> Any:
    """The decoder layers of a Hugging Face LLaVA."""
    return hf_model.model.language_model.layers  # type: ignore[union-attr]


def _zeroing(zeros: list[Zero], layer: int, step: _Step, head_dim: int) -> Any:
    """Pre-hook of the output projection: sets the inputs that come from chosen heads to zero."""

    def pre_hook(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()  # [batch, query, head * d_head]
        for zero in zeros:
            where = step.queries(zero.pos).to(z.device)
            for head in heads_of(zero, layer, z.shape[-1] // head_dim):
                z[..., head * head_dim : (head + 1) * head_dim].masked_fill_(where[..., None], 0.0)
        return (z,)

    return pre_hook


def heads_of(intervention: Zero | Block, layer: int, n_heads: int) -> list[int]:
    """Heads of one layer that an intervention means, from its ``layers`` and ``heads``."""
    layers, heads = intervention.layers, intervention.heads
    if layers is not None and layer not in ([layers] if isinstance(layers, int) else list(layers)):
        return []
    if heads is None:
        return list(range(n_heads))
    if isinstance(heads, int):
        return [heads]
    if isinstance(heads, Tensor):
        return heads[layer].nonzero().flatten().tolist()
    named = [h[1] if isinstance(h, tuple) else h for h in heads if not isinstance(h, tuple) or h[0] == layer]
    return [int(head) for head in named]


@final
@dataclass(kw_only=True)
class _Attention:
    """The attention function: closes edges, then lets ablated heads read replaced image keys and values."""

    blocks: list[Block]
    head_mask: HeadMask | None
    step: _Step

    def __call__(self, call: AttentionCall) -> Float[Tensor, "batch head query d_head"]:
        """Output per head."""
        if call.layer is None:
            return plain_pattern(call) @ call.v
        before, after = self._edges(call, renormalise=True), self._edges(call, renormalise=False)
        z = plain_pattern(call, before).masked_fill(after, 0.0) @ call.v
        if self.head_mask is None or bool(self.head_mask.of_layer(call.layer).all()):
            return z
        ablated = ~self.head_mask.of_layer(call.layer).to(z.device)
        rows = ablated[:, :, None] & self._text_after_image()[:, None, :].to(z.device)
        return torch.where(rows[..., None], self._replaced(call, before, after), z)

    def _edges(self, call: AttentionCall, *, renormalise: bool) -> Bool[Tensor, "batch head query key"]:
        batch, n_heads, n_query, n_key = *call.q.shape[:3], call.k.shape[2]
        closed = torch.zeros(batch, n_heads, n_query, n_key, dtype=torch.bool, device=call.q.device)
        for block in self.blocks:
            if block.renormalise != renormalise:
                continue
            edges = self.step.queries(block.dst)[:, :, None] & self.step.columns(block.src)[:, None, :]
            for head in heads_of(block, call.layer or 0, n_heads):
                closed[:, head] |= edges.to(closed.device)
        return closed

    def _text_after_image(self) -> Bool[Tensor, "batch query"]:
        position = torch.arange(self.step.so_far.n_pos, device=self.step.so_far.device)
        last_image = (self.step.so_far.image_mask * (position + 1)).amax(dim=1, keepdim=True) - 1
        return (position > last_image)[:, self.step.start :]

    def _replaced(
        self, call: AttentionCall, before: Tensor, after: Tensor
    ) -> Float[Tensor, "batch head query d_head"]:
        """Attention over a second set of keys and values, in which every image token's are the baseline's."""
        assert self.head_mask is not None and call.layer is not None
        image = self.step.so_far.image_mask.to(call.k.device)
        if self.head_mask.baseline == "knockout":
            return plain_pattern(call, before | image[:, None, None, :]).masked_fill(after, 0.0) @ call.v
        k = _with_baseline(call.k, image, self.head_mask, call.layer, "k")
        v = _with_baseline(call.v, image, self.head_mask, call.layer, "v")
        other = AttentionCall(layer=call.layer, q=call.q, k=k, v=v, mask=call.mask, scale=call.scale)
        return plain_pattern(other, before).masked_fill(after, 0.0) @ v


def _with_baseline(
    tensor: Float[Tensor, "batch head key d_head"],
    image: Bool[Tensor, "batch key"],
    head_mask: HeadMask,
    layer: int,
    which: str,
) -> Float[Tensor, "batch head key d_head"]:
    """Keys or values with the baseline at every image column."""
    if isinstance(head_mask.baseline, ImageKV):
        given = getattr(head_mask.baseline, which)[layer].to(tensor)
        baseline = given.repeat_interleave(tensor.shape[1] // len(given), dim=0)[None].expand(
            len(tensor), -1, -1
        )
    elif head_mask.baseline == "zero":
        baseline = torch.zeros_like(tensor[:, :, 0])
    else:
        baseline = torch.stack(
            [sample[:, own].mean(dim=1) for sample, own in zip(tensor, image, strict=True)]
        )
    return torch.where(image[:, None, :, None], baseline[:, :, None], tensor)
