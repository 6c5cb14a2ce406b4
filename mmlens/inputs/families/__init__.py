"""How each model family writes images into the sequence.

A family is one file with a packing rule and a prompt form, and one entry in ``FAMILIES``. The packing rule
says, for every image of a sample, which token positions are cells and which pixels of the original each cell
shows. Tiles, separator tokens and runs with gaps need nothing more: several grids per image, and image
tokens in no grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmlens.config import ModelConfig
from mmlens.errors import UnsupportedArchitecture
from mmlens.inputs.families import llava
from mmlens.inputs.geometry import ImageGeometry
from mmlens.inputs.grid import ImageGrid

PackingRule = Callable[[np.ndarray, Sequence[ImageGeometry], ModelConfig], tuple[ImageGrid, ...]]
"""(positions of one sample's image tokens, geometry of its images, shape of the model) → grids."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the inputs room knows about a family.

    Attributes:
        pack: the packing rule.
        chat_template: Jinja prompt form for processors that bring none.
    """

    pack: PackingRule
    chat_template: str


FAMILIES: dict[str, Family] = {
    "LlavaForConditionalGeneration": Family(pack=llava.pack, chat_template=llava.CHAT_TEMPLATE),
}
"""Hugging Face class name → family."""


def family_of(cfg: ModelConfig) -> Family:
    """The family of a model.

    Raises:
        UnsupportedArchitecture: none of ``FAMILIES``.
    """
    if cfg.architecture not in FAMILIES:
        raise UnsupportedArchitecture(
            f"no packing rule for {cfg.architecture!r}; known: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[cfg.architecture]
