"""From prompts and images to tensors with a label on every token.

``prepare`` turns a ``Prompt``, chat messages or a processor's tensors into ``Inputs``; each sample's
``TokenMap`` says what every token is, and which pixels an image token shows.
"""

from mmlens.inputs.batch import Inputs
from mmlens.inputs.grid import ImageGrid
from mmlens.inputs.images import ImageLike, image_sha256, load_image
from mmlens.inputs.prepare import prepare
from mmlens.inputs.prompt import DERIVED, ROLES, Prompt
from mmlens.inputs.regions import Box, Region, RegionMask
from mmlens.inputs.selectors import Selector
from mmlens.inputs.token_map import TokenMap
from mmlens.inputs.tokens import token_strings

__all__ = [
    "DERIVED",
    "ROLES",
    "Box",
    "ImageGrid",
    "ImageLike",
    "Inputs",
    "Prompt",
    "Region",
    "RegionMask",
    "Selector",
    "TokenMap",
    "image_sha256",
    "load_image",
    "prepare",
    "token_strings",
]
