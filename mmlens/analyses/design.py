"""Which heads to keep in each masked run: designs for regressing a metric on head masks.

1. Count the factors: one per (layer, head).
2. Draw masks, 1 = kept, by one of three laws:
   ``iid``         every head kept with probability ``keep``, independently;
   ``antithetic``  pairs (x, 1 - x) with x i.i.d. at keep = 0.5;
   ``hadamard``    blocks of a Hadamard matrix and its complement (foldover), each block with its own random
                   columns and signs.
3. Remember which masks are complements (``pair``) and which block they came from (``block``): the fit, its
   intervals and its split halves need both.

Complements cancel every interaction of even order out of the coefficients; a Hadamard block makes the heads
exactly orthogonal, so its least-squares solution is as precise as that many runs allow.

Source: foldover and orthogonal arrays are classical (Box & Wilson 1951; Paley 1933 for the matrices). Head
attribution (arXiv 2509.17588) does not state its mask law; these designs and their defaults are ours.
"""

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmlens.errors import DesignError

DesignKind = Literal["iid", "antithetic", "hadamard"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskDesign:
    """Head masks and how they were drawn.

    Attributes:
        masks: 1 = the head keeps its reading of the image.
        pair: number of the pair a mask belongs to; masks that share it are complements of each other.
        block: number of the independent block a mask was drawn in.
        kind: the law, see the module's docstring.
        keep: probability that a head is kept.
    """

    masks: Bool[Tensor, "mask layer head"]
    pair: Int[Tensor, " mask"]
    block: Int[Tensor, " mask"]
    kind: DesignKind
    keep: float

    @property
    def n_masks(self) -> int:
        """Number of masks, which is the number of model runs they cost."""
        return self.masks.shape[0]

    @property
    def paired(self) -> bool:
        """Whether every mask comes with its complement."""
        return self.kind != "iid"

    def joined(self, other: "MaskDesign") -> "MaskDesign":
        """This design followed by another of the same law; pairs and blocks stay distinct.

        Raises:
            DesignError: the two were drawn by different laws or for different models.
        """
        mine, theirs = (
            (self.kind, self.keep, self.masks.shape[1:]),
            (other.kind, other.keep, other.masks.shape[1:]),
        )
        if mine != theirs:
            raise DesignError(
                f"cannot join a design {mine} with {theirs}: kind, keep and model shape must agree."
            )
        return MaskDesign(
            masks=torch.cat([self.masks, other.masks]),
            pair=torch.cat([self.pair, other.pair + self.pair.max() + 1]),
            block=torch.cat([self.block, other.block + self.block.max() + 1]),
            kind=self.kind,
            keep=self.keep,
        )

    def subset(self, index: Int[Tensor, " chosen"]) -> "MaskDesign":
        """The chosen masks, in the given order. Callers keep pairs together."""
        return MaskDesign(
            masks=self.masks[index],
            pair=self.pair[index],
            block=self.block[index],
            kind=self.kind,
            keep=self.keep,
        )

    def halves(self) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
        """Two independent halves of equal size, as mask indices.

        Whole blocks are split when there are two or more (an odd last one is left out), pairs otherwise, so
        that each half is a design of the same law.
        """
        n_blocks = int(self.block.max()) + 1
        unit, n_units = (self.block, n_blocks) if n_blocks > 1 else (self.pair, int(self.pair.max()) + 1)
        used = unit < n_units - n_units % 2
        return (used & (unit % 2 == 0)).nonzero()[:, 0], (used & (unit % 2 == 1)).nonzero()[:, 0]


def block_size(n_heads_total: int, kind: DesignKind) -> int:
    """Number of masks by which a design of this law grows: 1, 2, or a Hadamard block with its complement.

    Args:
        n_heads_total: layers times heads per layer.
        kind: the law.
    """
    _check_kind(kind)
    return {"iid": 1, "antithetic": 2}.get(kind) or 2 * hadamard_order(n_heads_total)


def draw_design(
    n_masks: int,
    n_layers: int,
    n_heads: int,
    *,
    kind: DesignKind,
    keep: float = 0.5,
    generator: torch.Generator,
) -> MaskDesign:
    """Draws head masks.

    Args:
        n_masks: how many; a whole number of ``block_size``.
        n_layers: layers of the decoder.
        n_heads: query heads per layer.
        kind: ``iid``, ``antithetic`` or ``hadamard``.
        keep: probability that a head is kept; must be 0.5 for the two paired laws.
        generator: source of randomness, on the CPU.

    Returns:
        The masks, 1 = kept, with their pairs and blocks.

    Raises:
        DesignError: the law cannot be drawn with this ``keep`` or this number of masks.
    """
    step = _check_request(n_masks, n_layers, n_heads, kind, keep)
    n = n_layers * n_heads
    order = torch.arange(n_masks)
    if kind == "iid":
        flat, pair, block = torch.rand(n_masks, n, generator=generator) < keep, order, torch.zeros_like(order)
    elif kind == "antithetic":
        first = torch.rand(n_masks // 2, n, generator=generator) < 0.5
        flat, pair, block = _with_complements(first), order // 2, torch.zeros_like(order)
    else:
        blocks = [_with_complements(_hadamard_rows(n, generator)) for _ in range(n_masks // step)]
        flat, pair, block = torch.cat(blocks), order // 2, order // step
    masks = flat.reshape(n_masks, n_layers, n_heads)
    return MaskDesign(masks=masks, pair=pair, block=block, kind=kind, keep=keep)


def hadamard_order(at_least: int) -> int:
    """Smallest order >= ``at_least`` for which ``hadamard_matrix`` has a construction."""
    return next(order for order in itertools.count(at_least) if _paley_part(order))


def hadamard_matrix(order: int) -> Int[np.ndarray, "run factor"]:
    """A Hadamard matrix: entries +-1, orthogonal rows and columns.

    Args:
        order: a power of two, or a power of two times (q + 1) with q a prime and q % 4 == 3.

    Raises:
        DesignError: no construction is implemented for this order.

    Source: Sylvester 1867 (doubling), Paley 1933 (type I).
    """
    core = _paley_part(order)
    if not core:
        raise DesignError(
            f"no Hadamard matrix of order {order} is implemented; next: {hadamard_order(order)}."
        )
    matrix = np.ones((1, 1), dtype=np.int64) if core == 1 else _paley_matrix(core - 1)
    while matrix.shape[0] < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]], dtype=np.int64), matrix)
    return matrix


def _check_kind(kind: str) -> None:
    if kind not in get_args(DesignKind):
        raise DesignError(f"design {kind!r} is unknown; choose one of {', '.join(get_args(DesignKind))}.")


def _check_request(n_masks: int, n_layers: int, n_heads: int, kind: DesignKind, keep: float) -> int:
    _check_kind(kind)
    if min(n_layers, n_heads, n_masks) < 1:
        raise DesignError(
            f"{n_masks} masks for {n_layers} layers of {n_heads} heads: each must be at least 1."
        )
    if not 0.0 < keep < 1.0:
        raise DesignError(f"keep={keep}: a head must be kept with a probability strictly between 0 and 1.")
    if kind != "iid" and keep != 0.5:
        raise DesignError(
            f"design {kind!r} keeps every head half of the time; for keep={keep} use design='iid'."
        )
    step = block_size(n_layers * n_heads, kind)
    if n_masks % step:
        below, above = n_masks // step * step, (n_masks // step + 1) * step
        nearest = f"{below} or {above}" if below else str(above)
        raise DesignError(
            f"design {kind!r} for {n_layers * n_heads} heads comes in multiples of {step} masks, not "
            f"{n_masks}; "
            f"use {nearest}, or design='antithetic' (multiples of 2) or 'iid'."
        )
    return step


def _with_complements(rows: Bool[Tensor, "pair factor"]) -> Bool[Tensor, "mask factor"]:
    return torch.stack([rows, ~rows], dim=1).flatten(0, 1)  # x0, 1-x0, x1, 1-x1, ...


def _hadamard_rows(n_factors: int, generator: torch.Generator) -> Bool[Tensor, "run factor"]:
    # The constant column is as good as any other here: its complement makes it orthogonal to the intercept.
    matrix = torch.from_numpy(hadamard_matrix(hadamard_order(n_factors)))
    columns = torch.randperm(matrix.shape[1], generator=generator)[:n_factors]
    signs = torch.randint(0, 2, (n_factors,), generator=generator) * 2 - 1
    return matrix[:, columns] * signs > 0


def _paley_part(order: int) -> int:
    """The factor q + 1 (or 1) that is left after halving ``order`` as often as needed; 0 if there is none."""
    while order > 1:
        if order % 4 == 0 and _is_prime(order - 1):
            return order
        if order % 2:
            return 0
        order //= 2
    return 1


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _paley_matrix(q: int) -> Int[np.ndarray, "run factor"]:
    residues = np.zeros(q, dtype=np.int64) - 1
    residues[np.arange(1, q) ** 2 % q] = 1
    residues[0] = 0  # quadratic character: +1 for squares, -1 for the others, 0 at 0
    index = np.arange(q)
    skew = np.zeros((q + 1, q + 1), dtype=np.int64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = residues[(index[:, None] - index[None, :]) % q]
    return skew + np.eye(q + 1, dtype=np.int64)
