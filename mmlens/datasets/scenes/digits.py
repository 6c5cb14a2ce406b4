"""Real handwritten digits as scene objects: the 1,797 samples of scikit-learn's ``load_digits``.

Each sample is 8×8 pixels of 17 grey levels. It is enlarged by bilinear interpolation and cut at 45 % of full
ink, so that a digit, like every other object, is an exact set of pixels. Which split a sample may occur in
follows from its number alone: no handwriting is seen in two splits.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), test part.
"""

import zlib
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mmlens.errors import ConfigError

N_SAMPLES = 1797
FULL = 16.0
THRESHOLD = 0.45
_SHARES = {"train": range(0, 70), "attribution": range(70, 85), "heldout": range(85, 100)}


@cache
def _samples() -> tuple[Float[np.ndarray, "sample 8 8"], tuple[int, ...]]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    return found.images / FULL, tuple(int(value) for value in found.target)


def check(sample: int) -> None:
    """Refuse numbers of samples that there are not.

    Raises:
        ConfigError: If ``sample`` lies outside 0 to 1796.
    """
    if not 0 <= sample < N_SAMPLES:
        raise ConfigError(f"digit sample {sample} is unknown; samples are numbered 0 to {N_SAMPLES - 1}")


def value(sample: int) -> int:
    """Which digit a sample shows, 0 to 9."""
    return _samples()[1][sample]


@cache
def samples(split: str) -> tuple[int, ...]:
    """The samples that may occur in a split, in rising order."""
    shares = _SHARES[split]
    return tuple(i for i in range(N_SAMPLES) if zlib.crc32(f"digit/{i}".encode()) % 100 in shares)


@cache
def ink(sample: int, size: int) -> Bool[np.ndarray, "size size"]:
    """The pixels of one sample in a square of ``size`` pixels; read-only and shared."""
    grey = _samples()[0][sample]
    at = ((np.arange(size) + 0.5) / size * 8 - 0.5).clip(0, 7)
    low = at.astype(int).clip(max=6)
    part = at - low
    rows = grey[low] * (1 - part)[:, None] + grey[low + 1] * part[:, None]
    full = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    mask = full >= THRESHOLD
    mask.flags.writeable = False
    return mask
