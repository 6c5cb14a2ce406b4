"""What each intervention of a run did: hook points reached, elements matched, elements changed.

The ledger is how mmlens keeps the promise that nothing may silently do nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlens.errors import InterventionDidNothing


@dataclass(kw_only=True)
class LedgerEntry:
    """The account of one intervention.

    Attributes:
        intervention: its description.
        may_be_inert: whether changing nothing is what it says (an all-ones head mask).
        hooks: hook points it acted on, in order.
        steps: how often a hook of it ran.
        matched: elements selected, summed over hooks and steps.
        changed: elements whose value differs afterwards.
        largest_change: largest absolute difference it made, in units of the activation.
    """

    intervention: str
    may_be_inert: bool = False
    hooks: dict[str, None] = field(default_factory=dict)
    steps: int = 0
    _matched: list[Tensor] = field(default_factory=list)
    _changed: list[Tensor] = field(default_factory=list)
    _largest: list[Tensor] = field(default_factory=list)

    def record(self, hook_name: str, where: Tensor, old: Tensor, new: Tensor) -> None:
        """Notes one application; the counts stay on the device until somebody reads them."""
        self.hooks[hook_name] = None
        self.steps += 1
        difference = torch.where(
            where, (new - old).detach().abs(), torch.zeros((), dtype=old.dtype, device=old.device)
        )
        self._matched.append(torch.broadcast_to(where, old.shape).sum())
        self._changed.append((difference != 0).sum())
        self._largest.append(difference.amax() if difference.numel() else difference.sum())

    @property
    def matched(self) -> int:
        """Elements selected."""
        return int(sum(int(x) for x in self._matched))

    @property
    def changed(self) -> int:
        """Elements changed."""
        return int(sum(int(x) for x in self._changed))

    @property
    def largest_change(self) -> float:
        """Largest absolute difference made."""
        return max((float(x) for x in self._largest), default=0.0)

    def __str__(self) -> str:
        """One readable line."""
        return (
            f"{self.intervention}: {len(self.hooks)} hook points, {self.changed}/{self.matched} elements changed, "
            f"largest change {self.largest_change:.3g}"
        )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The accounts of all interventions of a run, in their order."""

    entries: tuple[LedgerEntry, ...]

    def raise_if_inert(self) -> None:
        """Raises InterventionDidNothing for the first intervention that changed no element."""
        for entry in self.entries:
            if entry.may_be_inert or entry.changed:
                continue
            if not entry.matched:
                reason = "it matched no element (position, head or layer) of this input"
            else:
                reason = f"it matched {entry.matched} elements and left every one as it was"
            raise InterventionDidNothing(
                f"{entry.intervention} did nothing: {reason}. Check its selectors against inputs.token_maps[0], "
                "or pass strict=False if that is what you mean."
            )

    def __str__(self) -> str:
        """One line an intervention."""
        return "\n".join(map(str, self.entries)) or "no interventions"


def ledger_of(descriptions: Sequence[tuple[str, bool]]) -> Ledger:
    """An empty ledger for interventions given as (description, may be inert)."""
    return Ledger(entries=tuple(LedgerEntry(intervention=d, may_be_inert=i) for d, i in descriptions))
