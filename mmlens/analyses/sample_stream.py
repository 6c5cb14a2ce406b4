"""A data set read sample by sample: bad samples are left out, with the reason, and the rest goes on.

1. Samples are taken one by one, from a list, a generator or ``Inputs``; nothing else of the data set is held.
2. They are measured in batches. Where a batch fails, its samples are measured one at a time, and the one that fails
   alone is the bad one.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mmlens.errors import InputError, MMLensError, NonFiniteError
from mmlens.inputs import Box, Inputs, load_image
from mmlens.inputs.requests import read_requests
from mmlens.metrics import check_answers
from mmlens.model import HookedVLM

MAX_REASONS = 100
"""Left-out samples whose reason a result keeps; further ones are counted."""

BAD_SAMPLE = (InputError, NonFiniteError)
"""What one sample can be guilty of. Any other error stops a sweep."""

Values = dict[str, Shaped[np.ndarray, "sample ..."]]
"""What was measured, by name: one row per sample."""


@dataclass(kw_only=True)
class LeftOut:
    """Samples that could not be used.

    Attributes:
        count: how many.
        reasons: number in the data set → why, of the first ones.
    """

    count: int = 0
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, reason: str) -> None:
        """Notes one more."""
        self.count += 1
        if len(self.reasons) < MAX_REASONS:
            self.reasons[index] = reason

    def attrs(self) -> dict[str, Any]:
        """Attributes of a result: ``n_left_out`` and ``left_out``."""
        return {
            "n_left_out": self.count,
            "left_out": {str(index): why for index, why in self.reasons.items()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One sample of a data set, not yet prepared.

    Attributes:
        index: its number in the data set, from 0.
        item: a prompt or a conversation, or ``Inputs`` of which it is one row.
        row: which.
    """

    index: int
    item: Any
    row: int = 0


def samples_of(model: HookedVLM, prompts: Any) -> Iterator[Sample]:
    """The samples of a data set, one by one.

    Args:
        model: prepares a processor's tensors.
        prompts: ``Inputs`` or a processor's tensors; one prompt or conversation; a list of them, or a generator, which
            is read as it comes.
    """
    if isinstance(prompts, Mapping):
        prompts = model.prepare(prompts)
    if isinstance(prompts, Inputs):
        yield from (Sample(index=i, item=prompts, row=i) for i in range(prompts.batch_size))
    elif not hasattr(prompts, "__iter__") or isinstance(prompts, str) or _is_conversation(prompts):
        yield Sample(index=0, item=prompts)
    else:
        yield from (Sample(index=i, item=item) for i, item in enumerate(prompts))


def _is_conversation(prompts: Any) -> bool:
    return isinstance(prompts, Sequence) and bool(prompts) and all(isinstance(p, Mapping) for p in prompts)


def prepared(model: HookedVLM, samples: Sequence[Sample]) -> Inputs:
    """The samples as one batch.

    Raises:
        InputError: ``model.prepare`` refuses one.
        AnswerError: an answer is no token of the model.
    """
    first = samples[0].item
    if isinstance(first, Inputs):
        inputs = first.select([sample.row for sample in samples]).to(model.device)
    else:
        inputs = model.prepare([sample.item for sample in samples])
    check_answers(inputs, model.cfg.d_vocab)
    return inputs


def measured(
    model: HookedVLM, samples: Sequence[Sample], measure: Callable[[Inputs], Values]
) -> tuple[list[int], Values, dict[int, MMLensError]]:
    """Measures a batch, or what can be measured of it.

    Args:
        model: the model.
        samples: of one batch.
        measure: from prepared samples to one row per sample.

    Returns:
        Numbers of the good samples, their values, and the error of each bad one, which names it.
    """
    try:
        return [sample.index for sample in samples], measure(prepared(model, samples)), {}
    except BAD_SAMPLE as error:
        if len(samples) == 1:
            return [], {}, {samples[0].index: _renamed(error, samples[0].index)}
    indices: list[int] = []
    parts: list[Values] = []
    errors: dict[int, MMLensError] = {}
    for sample in samples:
        index, values, bad = measured(model, [sample], measure)
        indices += index
        parts += [values] if index else []
        errors |= bad
    names = parts[0] if parts else {}
    return indices, {name: np.concatenate([part[name] for part in parts]) for name in names}, errors


def _renamed(error: MMLensError, index: int) -> MMLensError:
    """The error under the sample's number in the data set, where it was alone in a batch."""
    return type(error)(f"sample {index}: {re.sub(r'^sample 0:? ?', '', str(error))}")


def digest(sample: Sample) -> str:
    """SHA-256 of what a sample says and shows: 64 hexadecimal digits, the same wherever its pictures come from."""
    found = hashlib.sha256()
    try:
        for part in _parts(sample):
            found.update(len(part).to_bytes(8, "little") + part)
    except InputError as error:
        found.update(f"unreadable: {error}".encode())
    return found.hexdigest()


def _parts(sample: Sample) -> Iterator[bytes]:
    if isinstance(sample.item, Inputs):
        own = sample.item.select([sample.row])
        tensors = {"input_ids": own.input_ids, "pixels": own.pixel_values, "features": own.image_features}
        for name, tensor in tensors.items():
            if tensor is not None:
                yield name.encode() + tensor.detach().cpu().float().numpy().tobytes()
        for name, group in own.token_maps[0].groups.items():
            yield name.encode() + group.tobytes()
        return
    for request in read_requests([sample.item], None, None, None):
        prompt = request.prompt
        yield repr([(turn.speaker, turn.texts) for turn in request.conversation.turns]).encode()
        yield repr((prompt.answer, prompt.foil)).encode()
        for picture in request.conversation.pictures:
            yield np.asarray(load_image(picture.source)).tobytes()
        for name, regions in prompt.regions.items():
            for region in regions if isinstance(regions, Sequence) else [regions]:
                shape = repr(region) if isinstance(region, Box) else repr((region.image, region.mask.shape))
                yield f"{name} {shape}".encode()
                yield b"" if isinstance(region, Box) else region.mask.tobytes()
