"""How the masked runs of an analysis went, for its provenance, without holding on to what they keep in memory."""

from dataclasses import dataclass, field
from typing import Any

from mmlens.engine import MaskedRuns


@dataclass
class Ran:
    """Engines that ran, the smallest batch, and how often a batch was halved because memory had run out.

    Attributes:
        engines: their names.
        batch_size: masks run together, at the last; None before anything ran.
        n_halvings: over all prompts.
    """

    engines: set[str] = field(default_factory=set)
    batch_size: int | None = None
    n_halvings: int = 0

    def note(self, runs: MaskedRuns) -> None:
        """Takes down one prompt's runs; call it when they are done."""
        self.engines.add(runs.engine)
        self.batch_size = min(runs.batch_size, self.batch_size or runs.batch_size)
        self.n_halvings += runs.n_halvings

    def going_on(self, opening: dict[str, Any]) -> dict[str, Any]:
        """Options of ``open_runs`` for the next prompt: with the batch that fitted, if another one did not."""
        return opening | ({"batch_size": self.batch_size} if self.n_halvings else {})

    @property
    def settings(self) -> dict[str, int]:
        """For the settings of the provenance."""
        return {"batches_halved": self.n_halvings}

    @property
    def info(self) -> dict[str, Any]:
        """Fields of ``RunInfo``, by the names of ``run_info``."""
        return {"engine": ", ".join(sorted(self.engines)), "batch_size": self.batch_size}
