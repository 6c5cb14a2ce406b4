"""Inputs from a processor's own tensors (a ``BatchFeature``).

The text is gone, so roles are read off the tokens: everything before the first image is system, the tokens
of the processor's assistant tag at the end are role and final, the rest is question. Without an image only
the start token is system; without the tag (another prompt form, or a tokenizer without character offsets) only
the last token is final. The original images are gone, too: ``pixel_values`` themselves count as the images,
and boxes are in their pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.errors import AnswerError, InputError, MissingPixels, NonFiniteError, ShapeError, UnexpectedPixels
from mmlens.inputs.answers import answer_id, check_differ
from mmlens.inputs.batch import Inputs
from mmlens.inputs.families import Family
from mmlens.inputs.geometry import unprocessed
from mmlens.inputs.groups import region_groups
from mmlens.inputs.prompt import Conversation, Prompt
from mmlens.inputs.requests import check_all_or_none, regions_per_sample, strings_per_sample
from mmlens.inputs.template import own_template, render
from mmlens.inputs.token_map import TokenMap
from mmlens.inputs.tokens import check_image_token, check_vocabulary, encode, token_strings

_CONTEXT = 12  # tokens before the answer that are enough to tokenise it in context


def check_finite(pixels: Tensor | None) -> None:
    """Raises if pixel values hold NaN or infinity.

    Raises:
        NonFiniteError: they do; the message names the first image.
    """
    if pixels is None or bool(torch.isfinite(pixels).all()):
        return
    bad = int((~torch.isfinite(pixels)).flatten(1).any(1).nonzero()[0])
    raise NonFiniteError(
        f"pixel_values of image {bad} contain NaN or infinity: check the image processor's image_mean and "
        "image_std, and what was done to the pixels since."
    )


def prepare_tensors(
    features: Mapping[str, Any],
    *,
    processor: Any,
    cfg: ModelConfig,
    family: Family,
    answers: Any,
    foils: Any,
    regions: Any,
    min_coverage: int | float,
) -> Inputs:
    """Builds inputs from "input_ids", "attention_mask", "pixel_values" and whatever else a processor returns.

    Args:
        features: the processor's output with ``return_tensors="pt"``, padded on the left.
        processor: the processor, or None if tokens need no text and there are no answers.
        cfg: shape of the model.
        family: packing rule and prompt form.
        answers: one per sample, or None.
        foils: one per sample, or None.
        regions: one mapping per sample, in pixels of ``pixel_values``, or None.
        min_coverage: as for ``prepare``.

    Returns:
        The inputs; their tensors are those given.

    Raises:
        InputError: as ``prepare``.
    """
    tensors = _tensors(features)
    ids, mask = tensors.pop("input_ids"), tensors.pop("attention_mask", None)
    mask = _attention_mask(ids, mask, processor)
    pixels = tensors.pop("pixel_values", None)
    check_finite(pixels)
    check_vocabulary(ids, cfg)
    tag, glue = _assistant_tag(processor, cfg, family)
    maps = _token_maps(ids, mask, pixels, processor, cfg, family, tag)
    named = regions_per_sample(regions, len(maps))
    maps = [
        _with_regions(m, own, min_coverage, i) for i, (m, own) in enumerate(zip(maps, named, strict=True))
    ]
    inputs = Inputs(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixels,
        token_maps=tuple(maps),
        extra=tensors,
        image_token_id=cfg.image_token_id,
    )
    return _with_answers(inputs, answers, foils, processor, cfg, glue)


def _tensors(features: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in features.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} is {type(value).__name__}, not a tensor: call the processor with "
                "return_tensors='pt'."
            )
        tensors[name] = value
    ids = tensors["input_ids"]
    if ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
        raise ShapeError(f"input_ids must be whole numbers [batch, pos]; got {ids.dtype} {list(ids.shape)}.")
    return tensors


def _attention_mask(ids: Tensor, mask: Tensor | None, processor: Any) -> Tensor:
    if mask is None:
        pad_id = getattr(getattr(processor, "tokenizer", None), "pad_token_id", None)
        if len(ids) > 1 and (pad_id is None or bool((ids == pad_id).any())):
            raise InputError(
                "a batch without attention_mask does not say what is padding: give attention_mask, too."
            )
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise ShapeError(f"attention_mask must be {list(ids.shape)} like input_ids; got {list(mask.shape)}.")
    mask = mask.to(ids.dtype)
    if not bool(mask[:, -1].all()) or bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise InputError(
            "padding must be on the left: call the processor with padding=True, padding_side='left'."
        )
    return mask


def _assistant_tag(processor: Any, cfg: ModelConfig, family: Family) -> tuple[tuple[int, ...], str | None]:
    """The tokens that end every prompt of this processor, and what stands between them and an answer."""
    if processor is None:
        return (), None
    placeholder = check_image_token(processor, cfg.image_token_id)
    question = Conversation.of_prompt(Prompt(question="?"))
    try:
        rendered = render(question, processor, own_template(processor, family.chat_template), placeholder)
        encoded = encode(processor, rendered, [], cfg.image_token_id)
    except InputError:  # a slow tokenizer, or a template that insists on an image: no tag to look for
        return (), None
    pairs = zip(encoded.ids, encoded.roles, strict=True)
    return tuple(token for token, role in pairs if role in ("role", "final")), rendered.answer_glue


# ---- labels -----------------------------------------------------------------------------------------------


def _token_maps(
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    pixels: Tensor | None,
    processor: Any,
    cfg: ModelConfig,
    family: Family,
    tag: tuple[int, ...],
) -> list[TokenMap]:
    tokenizer = getattr(processor, "tokenizer", None)
    n_images = 0 if pixels is None else pixels.shape[0]
    is_image = ((ids == cfg.image_token_id) & (mask == 1)).cpu().numpy()
    shares = _images_per_sample(is_image, n_images)
    geometry = None if pixels is None else unprocessed((int(pixels.shape[-2]), int(pixels.shape[-1])))
    maps, first = [], 0
    for row, real, image, share in zip(ids.tolist(), mask.cpu().numpy() == 1, is_image, shares, strict=True):
        thumbnails = (
            [] if pixels is None else [_picture(pixels[i], processor) for i in range(first, first + share)]
        )
        grids = family.pack(np.flatnonzero(image), [geometry] * share if geometry else [], cfg)
        maps.append(
            TokenMap(
                tokens=tuple(
                    text if kept else ""
                    for text, kept in zip(token_strings(tokenizer, row), real, strict=True)
                ),
                roles=_roles(row, real, image, tag, cfg.bos_token_id),
                images=grids,
                thumbnails=tuple(thumbnails),
            )
        )
        first += share
    return maps


def _images_per_sample(is_image: Bool[np.ndarray, "batch pos"], n_images: int) -> list[int]:
    """Shares the images out by the number of image tokens; the packing rule then checks each sample."""
    counts = is_image.sum(1)
    total = int(counts.sum())
    if n_images == 0:
        return [0] * len(counts)
    if total == 0:
        raise UnexpectedPixels(
            f"pixel_values holds {n_images} image(s), but input_ids contains no image token that would read "
            "them."
        )
    shares = [int(count) * n_images // total for count in counts]
    if any(int(count) * n_images != share * total for count, share in zip(counts, shares, strict=True)):
        kind = MissingPixels if n_images < int((counts > 0).sum()) else UnexpectedPixels
        raise kind(
            f"pixel_values holds {n_images} image(s), which cannot be shared out over samples with "
            f"{counts.tolist()} image tokens: give one image for each placeholder, in order."
        )
    return shares


def _roles(
    row: Sequence[int],
    real: Bool[np.ndarray, "pos"],
    image: Bool[np.ndarray, "pos"],
    tag: tuple[int, ...],
    bos_token_id: int | None,
) -> tuple[str, ...]:
    n_pos, start = len(row), int(np.argmax(real))
    roles = ["pad"] * start + ["question"] * (n_pos - start)
    if image.any():
        roles[start : int(np.argmax(image))] = ["system"] * (int(np.argmax(image)) - start)
    elif row[start] == bos_token_id:
        roles[start] = "system"
    n_tag = len(tag)
    if n_tag and n_pos - start > n_tag and tuple(row[-n_tag:]) == tag and not image[-n_tag:].any():
        roles[-n_tag:] = ["role"] * n_tag
    roles[-1] = "final"
    return tuple("image" if is_image else role for role, is_image in zip(roles, image, strict=True))


def _picture(
    pixels: Float[Tensor, "channel height width"], processor: Any
) -> UInt8[np.ndarray, "height width 3"]:
    """The processor's normalisation undone, for drawing."""
    image_processor = getattr(processor, "image_processor", None)
    mean = torch.tensor(getattr(image_processor, "image_mean", None) or [0.0] * 3).view(3, 1, 1)
    std = torch.tensor(getattr(image_processor, "image_std", None) or [1.0] * 3).view(3, 1, 1)
    values = pixels.detach().float().cpu() * std + mean
    if image_processor is None:
        values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
    return (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _with_regions(
    token_map: TokenMap, regions: Mapping[str, Any], min_coverage: int | float, index: int
) -> TokenMap:
    groups = region_groups(
        regions, token_map.roles, token_map.images, min_coverage=min_coverage, where=f"sample {index}: "
    )
    return replace(token_map, groups=groups)


# ---- answers ----------------------------------------------------------------------------------------------


def _with_answers(
    inputs: Inputs, answers: Any, foils: Any, processor: Any, cfg: ModelConfig, glue: str | None
) -> Inputs:
    if answers is None and foils is None:
        return inputs
    if processor is None:
        raise AnswerError("answers need the processor's tokenizer to become tokens: give processor=.")
    texts = strings_per_sample(answers, inputs.batch_size, "answers")
    foil_texts = strings_per_sample(foils, inputs.batch_size, "foils")
    check_all_or_none(texts, "an answer")
    check_all_or_none(foil_texts, "a foil")
    if answers is None:
        raise AnswerError("foils came without answers to compare them with: give answers= too.")
    columns: dict[str, list[int]] = {"answer": [], "foil": []}
    for index, row in enumerate(inputs.input_ids.tolist()):
        prompt = _end_of_prompt(row, processor.tokenizer, cfg)
        between = glue if glue is not None else "" if prompt[-1:].isspace() else " "
        for kind, word in (("answer", texts[index]), ("foil", foil_texts[index])):
            if word is not None:
                shown = f"sample {index}: {kind}"
                token = answer_id(
                    processor.tokenizer, prompt, between, word, shown=shown, d_vocab=cfg.d_vocab
                )
                columns[kind].append(token)
        if foils is not None:
            pair = (columns["answer"][-1], columns["foil"][-1])
            check_differ(*pair, texts[index], foil_texts[index], f"sample {index}: ")
    device = inputs.input_ids.device
    return replace(
        inputs,
        answer_ids=torch.tensor(columns["answer"], device=device),
        foil_ids=torch.tensor(columns["foil"], device=device) if foils is not None else None,
    )


def _end_of_prompt(row: Sequence[int], tokenizer: Any, cfg: ModelConfig) -> str:
    tail = list(row[-_CONTEXT:])
    while cfg.image_token_id in tail:
        tail = tail[tail.index(cfg.image_token_id) + 1 :]
    return tokenizer.decode(tail, clean_up_tokenization_spaces=False)
