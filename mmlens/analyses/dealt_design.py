"""One design of head masks dealt out to several prompts, for a fit that they share.

1. Draw a design of the total size (``design``). Of Hadamard blocks, put the rows into random order, pairs together: any
   few successive rows of such a matrix are more alike than few of its rows are.
2. Deal every block in successive runs of pairs (of masks, where they are independent), so that after each block no
   prompt has more than one more than another.
3. Or give every prompt a Hadamard block of its own.
4. Say which half of all masks each belongs to, such that both halves have masks of every prompt.

Of a complementary pair only the difference enters the fit, and it does not hold the prompt's intercept. So Hadamard
blocks dealt out stay orthogonal for the common coefficients, and each prompt needs but a few masks. What prompts do not
have in common is noise in such a design, as each prompt by itself sees heads that are not orthogonal; blocks of their
own are free of it, and cost more masks.

Source: ours.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from mmlens.analyses.design import DesignKind, MaskDesign, block_size, draw_design


@dataclass(frozen=True, kw_only=True, eq=False)
class DealtDesign:
    """Masks of several prompts.

    Attributes:
        design: the masks of all of them.
        sample: number of the prompt that each mask is for.
        half: 0 or 1; masks of different halves are of different pairs.
        n_samples: how many prompts there are.
        own: whether every prompt has Hadamard blocks of its own.
    """

    design: MaskDesign
    sample: Int[Tensor, " mask"]
    half: Int[Tensor, " mask"]
    n_samples: int
    own: bool = False

    @property
    def n_masks(self) -> int:
        """Masks of all prompts."""
        return self.design.n_masks

    def of(self, sample: int) -> Int[Tensor, " chosen"]:
        """Where the masks of one prompt are."""
        return (self.sample == sample).nonzero()[:, 0]

    def parts(self) -> list[MaskDesign]:
        """The design of each prompt."""
        return [self.design.subset(self.of(i)) for i in range(self.n_samples)]

    def joined(self, other: "DealtDesign") -> "DealtDesign":
        """This design followed by another for the same prompts."""
        return DealtDesign(
            design=self.design.joined(other.design),
            sample=torch.cat([self.sample, other.sample]),
            half=torch.cat([self.half, other.half]),
            n_samples=self.n_samples,
            own=self.own and other.own,
        )

    def in_half(self, half: int) -> "DealtDesign":
        """The same masks, all in one half.

        Two halves of one Hadamard block err in opposite directions where prompts differ, which makes them agree less
        than independent ones; as soon as there are two blocks, they are the better halves.
        """
        return replace(self, half=torch.full_like(self.half, half))


def draw_dealt(
    n_masks: int,
    n_samples: int,
    n_layers: int,
    n_heads: int,
    *,
    kind: DesignKind,
    keep: float = 0.5,
    already: int = 0,
    generator: torch.Generator,
) -> DealtDesign:
    """Draws masks and deals them to prompts (steps 1, 2, 4).

    Args:
        n_masks: how many in all; a whole number of ``block_size``.
        n_samples: prompts to deal them to.
        n_layers: layers of the decoder.
        n_heads: query heads per layer.
        kind: the law of the masks.
        keep: probability that a mask keeps a head.
        already: masks dealt before; prompts that got one more then get one less now.
        generator: source of randomness, on the CPU.

    Raises:
        DesignError: as ``draw_design``.
    """
    design = draw_design(n_masks, n_layers, n_heads, kind=kind, keep=keep, generator=generator)
    design = _shuffled(design, generator) if kind == "hadamard" else design
    unit = 2 if design.paired else 1
    dealt, places = already // unit, []
    for block in design.block.unique():
        n_units = int((design.block == block).sum()) // unit
        share = _shares(dealt + n_units, n_samples) - _shares(dealt, n_samples)
        places.append(torch.arange(n_samples).repeat_interleave(share).repeat_interleave(unit))
        dealt += n_units
    sample = torch.cat(places)
    return DealtDesign(design=design, sample=sample, half=_halves(design), n_samples=n_samples)


def draw_own(
    n_blocks: int, n_samples: int, n_layers: int, n_heads: int, *, generator: torch.Generator
) -> DealtDesign:
    """Hadamard blocks for every prompt by itself (steps 3, 4).

    Args:
        n_blocks: of each prompt.
        n_samples: prompts.
        n_layers: layers of the decoder.
        n_heads: query heads per layer.
        generator: source of randomness, on the CPU.
    """
    step = block_size(n_layers * n_heads, "hadamard")
    found: DealtDesign | None = None
    for i in range(n_samples):
        design = draw_design(n_blocks * step, n_layers, n_heads, kind="hadamard", generator=generator)
        design = _shuffled(design, generator)
        sample = torch.full((design.n_masks,), i)
        one = DealtDesign(design=design, sample=sample, half=_halves(design), n_samples=n_samples, own=True)
        found = one if found is None else found.joined(one)
    assert found is not None
    return found


def _shares(n_units: int, n_samples: int) -> Int[Tensor, " sample"]:
    """Equal shares; the first prompts get what is left over, one each."""
    return n_units // n_samples + (torch.arange(n_samples) < n_units % n_samples).long()


def _halves(design: MaskDesign) -> Int[Tensor, " mask"]:
    """Whole blocks by turns if their number is even, pairs by turns otherwise."""
    n_blocks = int(design.block.max()) + 1
    return (design.pair if n_blocks % 2 else design.block) % 2


def _shuffled(design: MaskDesign, generator: torch.Generator) -> MaskDesign:
    """The pairs of every block in random order."""
    order = []
    for block in design.block.unique():
        first = (design.block == block).nonzero()[::2, 0]
        first = first[torch.randperm(len(first), generator=generator)]
        order.append(torch.stack([first, first + 1], dim=1).flatten())
    moved = design.subset(torch.cat(order))
    pair = torch.arange(design.n_masks) // 2
    return MaskDesign(masks=moved.masks, pair=pair, block=moved.block, kind=design.kind, keep=design.keep)
