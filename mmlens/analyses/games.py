"""Exact Shapley and Banzhaf values and interactions from a full table of subsets.

The arithmetic lies in ``mmlens.result.games``, where a planted truth needs it too.
"""

from mmlens.result.games import (
    addition_effects,
    banzhaf,
    banzhaf_interactions,
    removal_effects,
    shapley,
    shapley_interactions,
)

__all__ = [
    "addition_effects",
    "banzhaf",
    "banzhaf_interactions",
    "removal_effects",
    "shapley",
    "shapley_interactions",
]
