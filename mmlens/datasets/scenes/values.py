"""The vocabulary and the value types of the scenes dataset."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from PIL import Image

from mmlens.datasets.scenes import digits
from mmlens.datasets.scenes.glyphs import glyph
from mmlens.errors import ConfigError

GROUPS = {
    "curves": ("circle", "ring", "heart", "moon"),
    "polygons": ("square", "triangle", "star", "cross"),
    "numbers": ("digit",),
}
"""Super-category → its classes. One scene of kind "multi" never shows two classes of one group."""
CLASSES = ("circle", "ring", "heart", "moon", "square", "triangle", "star", "cross", "digit")
PLURALS = {name: name + ("es" if name == "cross" else "s") for name in CLASSES}
GROUP_OF = {name: group for group in GROUPS for name in GROUPS[group]}
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
PALETTE = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 215),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 165),
    "orange": (245, 135, 25),
    "white": (246, 246, 246),
    "black": (16, 16, 16),
}
COLOURS = tuple(PALETTE)
PALETTES = ("plain", "muted", "deep")
"""How colours are shaded over a whole scene: as they are, a fifth of the way to grey, or darker."""
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("plain", "gradient", "striped", "checked")
KINDS = ("single", "multi", "matched")
SPLITS = ("train", "attribution", "heldout")
MAX_COUNT = 7

SIZE = 80
"""Height and width of every image, in pixels."""
CELL = 10
"""Side of one vision cell, in pixels: frames lie on this lattice."""
SLOT = 20
"""Side of the square that one small object may fill, in pixels."""
MAIN_FRAME = 40
"""Side of the square that a main object may fill, in pixels."""
LINE = 2
"""Width of a drawn box's line, in pixels; it lies inside the frame and never on an object."""

Rectangle = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One drawn object: what it is, and exactly where.

    Attributes:
        name: One of CLASSES.
        colour: One of COLOURS.
        texture: One of TEXTURES.
        size: Side of the square the shape is drawn in, in pixels.
        left: Left edge of that square.
        top: Top edge of that square.
        frame: The lattice-aligned square kept free for this object; a drawn box follows its edge.
        sample: For a digit, which handwriting sample of scikit-learn's ``load_digits``; else None.
    """

    name: str
    colour: str
    texture: str
    size: int
    left: int
    top: int
    frame: Rectangle
    sample: int | None = None

    def __post_init__(self) -> None:
        """Refuse names outside the vocabulary and objects that leave their frame."""
        for value, known in ((self.name, CLASSES), (self.colour, COLOURS), (self.texture, TEXTURES)):
            if value not in known:
                raise ConfigError(f"a scene object was given {value!r}; known values are {', '.join(known)}")
        if (self.name == "digit") != (self.sample is not None):
            raise ConfigError(f"a {self.name} was given sample {self.sample}; digits need one, others none")
        if self.sample is not None:
            digits.check(self.sample)
        left, top, right, bottom = self.frame
        inside = left + LINE <= self.left and top + LINE <= self.top
        inside &= self.left + self.size <= right - LINE and self.top + self.size <= bottom - LINE
        if not inside or min(left, top) < 0 or max(right, bottom) > SIZE:
            raise ConfigError(
                f"a {self.name} of {self.size} pixels at ({self.left}, {self.top}) does not fit its frame "
                f"{self.frame} of a {SIZE}×{SIZE} image; use a smaller size or another place"
            )

    @property
    def value(self) -> str | None:
        """For a digit, which one it is, "0" to "9"; else None."""
        return None if self.sample is None else str(digits.value(self.sample))

    @property
    def shape(self) -> Bool[np.ndarray, "size size"]:
        """The object's pixels inside its square."""
        return glyph(self.name, self.size) if self.sample is None else digits.ink(self.sample, self.size)

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """The object's own pixels, exactly as drawn (objects never overlap)."""
        mask = np.zeros((SIZE, SIZE), bool)
        mask[self.top : self.top + self.size, self.left : self.left + self.size] = self.shape
        return mask

    @property
    def box(self) -> Rectangle:
        """The tight box around the object's pixels."""
        shape = self.shape
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        return (
            self.left + int(columns[0]),
            self.top + int(rows[0]),
            self.left + int(columns[-1]) + 1,
            self.top + int(rows[-1]) + 1,
        )

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (x, y) of the object's frame, in pixels."""
        left, top, right, bottom = self.frame
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One scene: its objects, what was drawn, and how to draw it again.

    Attributes:
        split: One of SPLITS.
        index: Position in the split.
        seed: Seed of the dataset.
        kind: "single" (one large main object, 0-3 small ones, all of different classes), "multi" (small
            objects of one or two classes, 1-7 of the first), "matched" (six small objects of six classes
            in three colours, two of each), or "composed" (asked for object by object).
        objects: The objects; the main object, or those of the counted class, first.
        boxed: Index of the object with a box drawn around it, or None.
        background: One of BACKGROUNDS.
        palette: One of PALETTES.
        image: The picture, 80×80 RGB.
    """

    split: str
    index: int
    seed: int
    kind: str
    objects: tuple[SceneObject, ...]
    boxed: int | None
    background: str
    palette: str
    image: Image.Image = field(repr=False)

    def named(self, name: str) -> tuple[SceneObject, ...]:
        """The objects of one class, possibly none."""
        if name not in CLASSES:
            raise ConfigError(f"{name!r} is no scene class; the classes are {', '.join(CLASSES)}")
        return tuple(item for item in self.objects if item.name == name)
