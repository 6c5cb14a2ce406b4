"""A unit of a sweep: one analysis of one sample, and the address that says exactly what it computes.

The address is the SHA-256 of analysis, options, sample, weights and version, and of the sample's number where the
analysis draws random masks by it. Nothing else enters: not the machine, not the workers, not the order.
"""

import hashlib
import inspect
import json
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmlens import __version__
from mmlens.errors import ConfigError, SweepError
from mmlens.inputs import Box, Prompt, RegionMask
from mmlens.inputs.images import image_sha256
from mmlens.model import HookedVLM
from mmlens.result import Result
from mmlens.result.archive import seal
from mmlens.result.codec import encode

Sample = Prompt | tuple[Prompt, ...]
"""What one unit is computed of: a prompt, or as many as the analysis takes side by side (clean, corrupt)."""

_NUMBER = "first_sample"
_OURS = ("model", "progress", _NUMBER)


def content_address(content: Any) -> str:
    """SHA-256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sample_digest(sample: Sample) -> str:
    """SHA-256 (hex) of what a sample asks: texts, pixels and regions.

    Raises:
        ImageError: an image cannot be read.
    """
    return content_address([_described(one) for one in _as_tuple(sample)])


def _as_tuple(sample: Sample) -> tuple[Prompt, ...]:
    return (sample,) if isinstance(sample, Prompt) else sample


def _described(prompt: Prompt) -> list[Any]:
    regions = {name: [_region(one) for one in given] for name, given in prompt.regions.items()}  # type: ignore[union-attr]
    images = [image_sha256(image) for image in prompt.images]
    return [prompt.question, prompt.answer, prompt.foil, images, regions]


def _region(region: Box | RegionMask) -> list[Any]:
    if isinstance(region, Box):
        return [region.left, region.top, region.right, region.bottom, int(region.image)]
    mask = np.ascontiguousarray(region.mask)
    return [list(mask.shape), hashlib.sha256(mask.tobytes()).hexdigest(), int(region.image)]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One sample of a sweep.

    Attributes:
        number: of the sample in the list of prompts, from 0.
        sample: the prompt, or the prompts side by side.
        address: what it computes, as SHA-256.
    """

    number: int
    sample: tuple[Prompt, ...]
    address: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a unit: a sealed result, or the reason why there is none.

    Attributes:
        shard: bytes of the sealed file; None if the unit failed.
        reason: kind and message of the error, if it failed.
        seconds: wall-clock time.
    """

    shard: bytes | None
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all units of a sweep share; small and picklable, so that a worker elsewhere can be told.

    Attributes:
        analysis: name of one of ``mmlens.analyses``, or ``package.module:function``.
        options: keyword arguments of it, as JSON values.
        model_id: name under which the model can be loaded again.
        fingerprint: of its weights.
        version: of mmlens.
    """

    analysis: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model_id: str
    fingerprint: str
    version: str = __version__

    def __post_init__(self) -> None:
        """Resolves the analysis and binds the options, so that a wrong name fails before any work.

        Raises:
            ConfigError: no such analysis or option, or an option that is no JSON value.
        """
        try:
            plain = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the options of a sweep are part of its address and must be JSON values: {error}. Give names instead "
                "of objects; or write a function of your own, 'package.module:function'."
            ) from error
        object.__setattr__(self, "options", plain)
        taken = inspect.signature(self.function()).parameters
        answer = inspect.signature(self.function()).return_annotation
        if isinstance(answer, type) and issubclass(answer, Result) and answer.of_all_samples:
            raise ConfigError(
                f"{self.analysis} gives one answer for all prompts together, and a sweep runs them one at a time; call "
                "it on all prompts at once."
            )
        swallows = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
        known = [name for name in taken if name not in _OURS]
        wrong = [name for name in plain if name in _OURS or (name not in known and not swallows)]
        if wrong:
            raise ConfigError(
                f"{self.analysis} takes no option {wrong[0]!r} in a sweep; known: {', '.join(known)}."
            )

    def function(self) -> Callable[..., Any]:
        """The analysis itself.

        Raises:
            ConfigError: there is none of that name.
        """
        name = self.analysis if ":" in self.analysis else f"mmlens.analyses:{self.analysis}"
        try:
            found = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"there is no analysis {self.analysis!r} ({error}). Give a name of mmlens.analyses, such as "
                "'head_attribution', or 'package.module:function'."
            ) from error
        if not callable(found):
            raise ConfigError(f"{self.analysis!r} is no function.")
        return found

    def takes(self, name: str) -> bool:
        """Whether the analysis has a parameter of this name."""
        return name in inspect.signature(self.function()).parameters

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Whether the analysis can be called with the prompts of each sample and the options.

        Raises:
            ConfigError: it takes more or fewer prompts side by side, or needs an option that is not given.
        """
        taken = inspect.signature(self.function())
        for n in sorted({len(_as_tuple(sample)) for sample in samples}):
            try:
                taken.bind(None, *[None] * n, **self.options)
            except TypeError as error:
                raise ConfigError(
                    f"{self.analysis} cannot be called with the model, {n} prompt{'s' * (n > 1)} side by side and "
                    f"these options: {error}. It takes {', '.join(taken.parameters)}."
                ) from error

    def described(self) -> dict[str, Any]:
        """What the job is, as JSON values."""
        return {
            "analysis": self.analysis,
            "options": dict(self.options),
            "model_id": self.model_id,
            "weight_fingerprint": self.fingerprint,
            "mmlens": self.version,
        }

    def units(self, samples: Sequence[Sample]) -> list[Unit]:
        """The samples with their addresses.

        Raises:
            ImageError: an image cannot be read.
        """
        return [self.unit(number, sample) for number, sample in enumerate(samples)]

    def unit(self, number: int, sample: Sample) -> Unit:
        """One sample with its address.

        Args:
            number: of the sample in the list of prompts.
            sample: the sample.

        Raises:
            ImageError: an image cannot be read.
        """
        shared = {name: value for name, value in self.described().items() if name != "model_id"}
        content = {"sample": sample_digest(sample), "number": number if self.takes(_NUMBER) else None}
        return Unit(number=number, sample=_as_tuple(sample), address=content_address({**shared, **content}))

    def compute(self, model: HookedVLM, unit: Unit) -> Outcome:
        """Runs one unit. Whatever the analysis raises becomes the outcome's reason; nothing is lost to it."""
        started = time.perf_counter()
        own = {_NUMBER: unit.number, "progress": False}
        options = {**self.options, **{name: value for name, value in own.items() if self.takes(name)}}
        try:
            result = self.function()(model, *([prompt] for prompt in unit.sample), **options)
            shard = _sealed(result, unit)
        except Exception as error:
            return Outcome(
                shard=None, reason=_reason(error, unit.number), seconds=time.perf_counter() - started
            )
        return Outcome(shard=shard, seconds=time.perf_counter() - started)


def _sealed(result: Any, unit: Unit) -> bytes:
    """The result's file without time of day and duration: the same unit gives the same bytes."""
    if not isinstance(result, Result) or result.n != 1:
        raise SweepError(
            f"the analysis must return a Result with one sample per unit; it returned {type(result).__name__}"
            f"{f' with {result.n}' if isinstance(result, Result) else ''}."
        )
    settings = {**result.info.settings, "unit": unit.address}
    info = result.info.model_copy(update={"created": "", "seconds": 0.0, "settings": settings})
    return seal(encode(result.kind, result.data, info))


def _reason(error: Exception, number: int) -> str:
    """Kind and message; an analysis of one sample calls it sample 0, the sweep knows its number."""
    return f"{type(error).__name__}: {str(error).replace('sample 0', f'sample {number}', 1)}"
