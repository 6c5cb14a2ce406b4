"""The plantings: which heads may carry the image into the text, chosen before training.

To add one, add a row to PLANTINGS; ``mmlens.pretrained.plant`` trains it.
"""

from dataclasses import dataclass
from typing import Literal

from mmlens.errors import ConfigError

Part = Literal["carrier", "relay", "decoy"]
PARTS: tuple[Part, ...] = ("carrier", "relay", "decoy")


@dataclass(frozen=True, kw_only=True)
class PlantedHead:
    """One head of a planting.

    Attributes:
        layer: decoder layer.
        head: head of that layer.
        part: "carrier" (reads the image), "relay" (the final token reads the role tag through it; never the
            image), or "decoy" (reads the image exactly as its model does, and writes nothing).
        model: of a decoy, the carrier of the same layer whose queries and keys it copies.
    """

    layer: int
    head: int
    part: Part = "carrier"
    model: int | None = None


@dataclass(frozen=True, kw_only=True)
class Planting:
    """One planting.

    Attributes:
        name: of the embedded model, without "planted-".
        about: one sentence.
        heads: the planted heads, by layer and head.
        steps: optimiser steps of its training.
        redundant: whether training closes carriers by lot, so that any one of them suffices.
    """

    name: str
    about: str
    heads: tuple[PlantedHead, ...]
    steps: int = 1500
    redundant: bool = False

    @property
    def relayed(self) -> bool:
        """Whether the image reaches the final token only through the role tag."""
        return any(head.part == "relay" for head in self.heads)

    def of(self, part: Part, layer: int | None = None) -> tuple[PlantedHead, ...]:
        """The heads of one part, in one layer or in all."""
        return tuple(h for h in self.heads if h.part == part and layer in (None, h.layer))

    def reads_image(self, layer: int) -> frozenset[int]:
        """Heads of a layer whose image edges are not closed: carriers and decoys."""
        return frozenset(h.head for h in self.heads if h.layer == layer and h.part != "relay")


def _carriers(*places: tuple[int, int]) -> tuple[PlantedHead, ...]:
    return tuple(PlantedHead(layer=layer, head=head) for layer, head in places)


_ROWS = (
    Planting(
        name="layer",
        about="Three heads of one layer carry everything.",
        heads=_carriers((3, 1), (3, 4), (3, 6)),
    ),
    Planting(
        name="spread",
        about="One head each in an early, two middle and a late layer.",
        heads=_carriers((0, 5), (2, 2), (3, 7), (5, 1)),
    ),
    Planting(
        name="redundant",
        about="Three heads of three layers, any one of which suffices.",
        heads=_carriers((2, 1), (3, 4), (4, 6)),
        redundant=True,
    ),
    Planting(
        name="relay",
        about="Three heads carry the image to the role tag, two later ones from there to the final token.",
        steps=4000,
        heads=(
            *_carriers((2, 0), (2, 5), (3, 3)),
            PlantedHead(layer=4, head=2, part="relay"),
            PlantedHead(layer=5, head=6, part="relay"),
        ),
    ),
    Planting(
        name="decoys",
        about="Three heads carry; beside each, another looks exactly where it looks, and carries nothing.",
        steps=1000,
        heads=(
            PlantedHead(layer=1, head=3),
            PlantedHead(layer=1, head=6, part="decoy", model=3),
            PlantedHead(layer=3, head=1),
            PlantedHead(layer=3, head=4, part="decoy", model=1),
            PlantedHead(layer=4, head=0, part="decoy", model=5),
            PlantedHead(layer=4, head=5),
        ),
    ),
)
PLANTINGS = {row.name: row for row in _ROWS}


def planting(name: str) -> Planting:
    """A planting by name, with or without "planted-".

    Raises:
        ConfigError: If there is none of that name.
    """
    found = PLANTINGS.get(name.removeprefix("planted-"))
    if found is None:
        raise ConfigError(f"no planting is called {name!r}; there are: {', '.join(PLANTINGS)}")
    return found
