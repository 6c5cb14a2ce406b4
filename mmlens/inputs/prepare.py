"""From what a user writes to what the model reads.

1. Sort out what was given: prompts or chat messages here, a processor's tensors in ``tensors``.
2. Load every image through the hardened loader.
3. Render each conversation with the processor's chat template and tokenise it; label the tokens.
4. Let the family's packing rule say which image token shows which pixels; turn regions into groups.
5. Find the answers' tokens, in context.
6. Pad on the left, whatever the tokenizer's own side, and assemble.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from mmlens.config import ModelConfig
from mmlens.errors import ConfigError
from mmlens.inputs.answers import answer_id, check_differ
from mmlens.inputs.batch import Inputs
from mmlens.inputs.families import Family, family_of
from mmlens.inputs.geometry import ImageGeometry, processor_geometry
from mmlens.inputs.groups import region_groups
from mmlens.inputs.images import load_image
from mmlens.inputs.prompt import check_regions
from mmlens.inputs.requests import Request, read_requests
from mmlens.inputs.template import Rendered, own_template, render
from mmlens.inputs.tensors import check_finite, prepare_tensors
from mmlens.inputs.token_map import TokenMap
from mmlens.inputs.tokens import Encoded, check_image_token, check_vocabulary, encode, token_strings

_THUMBNAIL = 320  # longest side, in pixels: enough to draw on, little to keep for thousands of samples


@dataclass(frozen=True, kw_only=True, eq=False)
class _Setting:
    """What is the same for all samples."""

    processor: Any
    cfg: ModelConfig
    family: Family
    min_coverage: int | float
    placeholder: str
    template: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sample:
    request: Request
    encoded: Encoded
    token_map: TokenMap
    answer_id: int | None
    foil_id: int | None


def prepare(
    prompts: Any,
    *,
    processor: Any,
    cfg: ModelConfig,
    answers: str | Sequence[str | None] | None = None,
    foils: str | Sequence[str | None] | None = None,
    regions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    min_coverage: int | float = 0.0,
) -> Inputs:
    """Builds the model's inputs.

    Args:
        prompts: one ``Prompt`` or a list; one conversation of Hugging Face chat messages or a list of them;
            or a processor's ``BatchFeature`` (any mapping with "input_ids" and tensors).
        processor: the checkpoint's Hugging Face processor; not changed. Without a chat template, the prompt
            form of the model's family is used. May be None for a ``BatchFeature``: then tokens have no text,
            and answers cannot be given.
        cfg: shape of the model.
        answers: expected answers, one per sample, for chat messages and tensors (a ``Prompt`` has its own).
        foils: wrong answers to compare them with, likewise.
        regions: name → region for each sample, likewise. For tensors, whose original images are unknown, in
            pixels of ``pixel_values``.
        min_coverage: a cell belongs to a region if at least this fraction of it is covered; 0: any overlap.

    Returns:
        A left-padded batch with a token map per sample.

    Raises:
        InputError: anything that does not fit together; its subclasses say what: ``ImageError``,
            ``MissingPixels``, ``UnexpectedPixels``, ``RegionError``, ``AnswerError``, ``ShapeError``.
        ConfigError: the processor does not belong to the model.
        NonFiniteError: NaN or infinity in the pixels.
    """
    family = family_of(cfg)
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        return prepare_tensors(
            prompts,
            processor=processor,
            cfg=cfg,
            family=family,
            answers=answers,
            foils=foils,
            regions=regions,
            min_coverage=min_coverage,
        )
    requests = read_requests(prompts, answers, foils, regions)
    if processor is None:
        raise ConfigError("prompts need the checkpoint's processor to become tokens: give processor=.")
    setting = _Setting(
        processor=processor,
        cfg=cfg,
        family=family,
        min_coverage=min_coverage,
        placeholder=check_image_token(processor, cfg.image_token_id),
        template=own_template(processor, family.chat_template),
    )
    samples = [_prepare_one(request, setting, f"sample {index}: ") for index, request in enumerate(requests)]
    return _assemble(samples, setting)


def _prepare_one(request: Request, setting: _Setting, where: str) -> _Sample:
    processor, cfg = setting.processor, setting.cfg
    images = [load_image(picture.source) for picture in request.conversation.pictures]
    geometries = [
        processor_geometry((image.height, image.width), processor.image_processor) for image in images
    ]
    rendered = render(request.conversation, processor, setting.template, setting.placeholder)
    encoded = encode(processor, rendered, images, cfg.image_token_id)
    _check_geometry(encoded, geometries, processor)
    check_vocabulary(torch.tensor(encoded.ids), cfg, where)
    token_map = _token_map(request, encoded, images, geometries, setting, where)
    answer = _answer_id(request.prompt.answer, f"{where}answer", rendered, setting)
    foil = _answer_id(request.prompt.foil, f"{where}foil", rendered, setting)
    check_differ(answer, foil, request.prompt.answer, request.prompt.foil, where)
    return _Sample(request=request, encoded=encoded, token_map=token_map, answer_id=answer, foil_id=foil)


def _token_map(
    request: Request,
    encoded: Encoded,
    images: list[Image.Image],
    geometries: list[ImageGeometry],
    setting: _Setting,
    where: str,
) -> TokenMap:
    positions = np.flatnonzero(np.array(encoded.ids) == setting.cfg.image_token_id)
    grids = setting.family.pack(positions, geometries, setting.cfg)
    regions = check_regions(request.prompt.regions)
    return TokenMap(
        tokens=token_strings(setting.processor.tokenizer, encoded.ids),
        roles=encoded.roles,
        groups=region_groups(regions, encoded.roles, grids, min_coverage=setting.min_coverage, where=where),
        images=grids,
        thumbnails=tuple(_thumbnail(image) for image in images),
    )


def _thumbnail(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(small).copy()


def _check_geometry(encoded: Encoded, geometries: list[ImageGeometry], processor: Any) -> None:
    pixels = encoded.tensors.get("pixel_values")
    if pixels is None:
        return
    check_finite(pixels)
    if any(geometry.processed != tuple(pixels.shape[-2:]) for geometry in geometries):
        raise ConfigError(
            f"{type(processor.image_processor).__name__} makes images of {tuple(pixels.shape[-2:])} pixels "
            f"where its settings say {geometries[0].processed}: mmlens does not know how it lays them out, "
            "so cells would be off."
        )


def _answer_id(answer: str | None, shown: str, rendered: Rendered, setting: _Setting) -> int | None:
    if answer is None:
        return None
    tokenizer, d_vocab = setting.processor.tokenizer, setting.cfg.d_vocab
    return answer_id(tokenizer, rendered.text, rendered.answer_glue, answer, shown=shown, d_vocab=d_vocab)


# ---- batch ------------------------------------------------------------------------------------------------


def _assemble(samples: list[_Sample], setting: _Setting) -> Inputs:
    n_pos = max(len(sample.encoded.ids) for sample in samples)
    pads = [n_pos - len(sample.encoded.ids) for sample in samples]
    pad_id = _pad_id(setting.processor.tokenizer, setting.cfg)
    tensors = _joined(samples, pads)
    return Inputs(
        input_ids=torch.tensor(
            [[pad_id] * n + list(s.encoded.ids) for n, s in zip(pads, samples, strict=True)]
        ),
        attention_mask=torch.tensor([[0] * n + [1] * (n_pos - n) for n in pads]),
        pixel_values=tensors.pop("pixel_values", None),
        token_maps=tuple(s.token_map.padded(n) for n, s in zip(pads, samples, strict=True)),
        prompts=tuple(sample.request.prompt for sample in samples),
        answer_ids=_column([sample.answer_id for sample in samples]),
        foil_ids=_column([sample.foil_id for sample in samples]),
        extra=tensors,
        image_token_id=setting.cfg.image_token_id,
    )


def _pad_id(tokenizer: Any, cfg: ModelConfig) -> int:
    # attention never reads padding, so any id will do that the model can embed and that is no image
    usable = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0, 1)
    return next(i for i in usable if i is not None and i != cfg.image_token_id and i < cfg.d_vocab)


def _joined(samples: list[_Sample], pads: list[int]) -> dict[str, Tensor]:
    joined: dict[str, list[Tensor]] = {}
    for sample, n in zip(samples, pads, strict=True):
        for name, tensor in sample.encoded.tensors.items():
            per_token = tuple(tensor.shape) == (1, len(sample.encoded.ids))
            joined.setdefault(name, []).append(
                torch.nn.functional.pad(tensor, (n, 0)) if per_token else tensor
            )
    return {name: torch.cat(tensors) for name, tensors in joined.items()}


def _column(ids: Sequence[int | None]) -> Int[Tensor, "batch"] | None:
    known = [token for token in ids if token is not None]  # all or none: the requests were checked
    return torch.tensor(known) if known else None
