"""Bootstrap over samples: how far a mean could have come out elsewhere."""

import numpy as np
from jaxtyping import Float

from mmlens.errors import ConfigError


def resampled_means(
    values: Float[np.ndarray, "sample *rest"], n_boot: int, seed: int
) -> Float[np.ndarray, "draw *rest"]:
    """Means over samples drawn with replacement, as many as there are.

    Columns with equal values get equal means to the last digit, so that ties stay ties.

    Args:
        values: one row per sample, any unit.
        n_boot: number of draws.
        seed: of the draws.

    Raises:
        ConfigError: ``n_boot`` is not positive.
    """
    if n_boot < 1:
        raise ConfigError(f"n_boot={n_boot}: at least one bootstrap draw is needed, better 1000.")
    rng, n = np.random.default_rng(seed), len(values)
    return np.stack([values[rng.integers(n, size=n)].mean(axis=0) for _ in range(n_boot)])


def percentile_interval(
    draws: Float[np.ndarray, "draw *rest"], level: float = 0.95
) -> Float[np.ndarray, "*rest bound"]:
    """Lower and upper end of the middle ``level`` of the draws; NaN where a draw is NaN."""
    tail = (1 - level) / 2
    return np.moveaxis(np.quantile(draws, [tail, 1 - tail], axis=0), 0, -1)
