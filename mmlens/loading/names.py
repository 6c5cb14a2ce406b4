"""One name for every tensor, whichever layout a LLaVA checkpoint was written in.

The canonical names are those of a live ``transformers`` 5.23 model::

    model.language_model.{embed_tokens,layers.N.…,norm}.…      decoder
    model.vision_tower.{embeddings,pre_layrnorm,encoder.layers.N}.…   CLIP tower (no ``vision_model`` level)
    model.multi_modal_projector.{linear_1,linear_2}.…          projector
    lm_head.weight                                             unembedding

Layouts found in the wild, by where they keep the decoder's layers, the tower's layers and the projector:

- transformers up to 4.51, and most hub checkpoints: ``language_model.model.layers``,
  ``vision_tower.vision_model.encoder``, ``multi_modal_projector.linear_1`` (head: ``language_model.lm_head``)
- transformers 4.52 and later: ``model.language_model.layers``, ``model.vision_tower.vision_model.encoder``,
  ``model.multi_modal_projector.linear_1``
- saved by transformers 5: the decoder, projector and head as up to 4.51, but ``vision_tower.encoder``
- original LLaVA repository: ``model.layers``, ``model.vision_tower.vision_tower.vision_model.encoder``,
  ``model.mm_projector.0``
- a CLIP folder by itself: ``vision_model.encoder``
"""

import re
from collections.abc import Iterable, Mapping

from jaxtyping import Shaped
from torch import Tensor

from mmlens.errors import CheckpointError

NamedTensors = Mapping[str, Shaped[Tensor, "..."]]
"""Tensors by name; reading an item may map a file into memory but never copies it."""

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The original repository wraps the CLIP model in a tower object, hence the doubled level. Must
        # precede the next rule, which would strip only one of the two levels.
        (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
        (r"^vision_model\.", "model.vision_tower."),
        # The original projector is nn.Sequential(Linear, GELU, Linear).
        (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
        (r"^(?:model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
        # The head lived inside the language model up to 4.51. Must precede the decoder rule.
        (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
        # The original repository subclasses the Llama model: no language_model level at all. Must come last,
        # because every other name that starts with "model." has been dealt with.
        (r"^model\.(?=(?:layers|embed_tokens|norm|rotary_emb)\.)", "model.language_model."),
    )
)
"""Ordered: the first rule that matches a name renames it, and no other is tried."""

_UNUSED = re.compile(
    r"rotary_emb\.(?:original_)?inv_freq$"  # recomputed from the configuration
    r"|vision_tower\.embeddings\.position_ids$"  # 0, 1, 2, …
    r"|vision_tower\.post_layernorm\.(?:weight|bias)$"  # LLaVA reads hidden states from before this norm
)


def canonical_name(name: str) -> str:
    """The name a live transformers 5.23 LLaVA gives the tensor that a checkpoint stores as ``name``.

    Names that no rule knows come back unchanged (and are reported as extra later). Canonical names are fixed
    points.
    """
    for pattern, replacement in _RULES:
        renamed, n_matches = pattern.subn(replacement, name)
        if n_matches:
            return renamed
    return name


def stored_names(names: Iterable[str]) -> dict[str, str]:
    """Maps canonical names to the names found in a checkpoint.

    Raises:
        CheckpointError: two stored names mean the same tensor.
    """
    stored: dict[str, str] = {}
    for name in names:
        canonical = canonical_name(name)
        if canonical in stored:
            raise CheckpointError(
                f"the tensors {stored[canonical]!r} and {name!r} are both {canonical!r}; expected one of "
                "them. The checkpoint mixes two layouts: save it again from a loaded model with "
                "save_pretrained."
            )
        stored[canonical] = name
    return stored


def is_unused(name: str) -> bool:
    """Whether a canonical name belongs to a tensor that checkpoints carry but LLaVA-1.5 never reads.

    These are the rotary frequencies and position numbers (buffers recomputed from the configuration) and the
    CLIP tower's ``post_layernorm``: image features are hidden states, taken before it.
    """
    return _UNUSED.search(name) is not None
