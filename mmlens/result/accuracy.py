"""Accuracy of one model per question family and condition, beside the majority rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from mmlens.errors import ResultError
from mmlens.result.base import Result
from mmlens.result.schema import Variable


@final
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AccuracyResult(Result):
    """Accuracy with and without interventions, for every question family of a data set.

    Dataset attributes: ``dataset`` and ``intervention`` (what the conditions other than ``clean`` do, in
    words).
    """

    kind: ClassVar[str] = "accuracy"
    main: ClassVar[str] = "accuracy"
    variables: ClassVar[Mapping[str, Variable]] = {
        "accuracy": Variable(dims=("family", "condition"), description="share of correct answers", unit="1"),
        "interval": Variable(
            dims=("family", "condition", "bound"),
            description="95 % interval of the share of correct answers",
            unit="1",
            required=False,
        ),
        "majority": Variable(
            dims=("family",),
            description="share of the most frequent answer: what guessing it scores",
            unit="1",
        ),
        "n": Variable(dims=("family",), description="questions", unit="questions", dtype="int"),
    }
    required_attrs: ClassVar[tuple[str, ...]] = ("dataset", "intervention")
    plotter: ClassVar[str] = "mmlens.plots:accuracy_bars"

    def check(self) -> None:
        """Shares lie in [0, 1].

        Raises:
            ResultError: one does not (percent were given, perhaps).
        """
        for name in ("accuracy", "majority"):
            low, high = float(self.data[name].min()), float(self.data[name].max())
            if low < 0 or high > 1:
                raise ResultError(
                    f"{name} must lie in [0, 1], got {low:g} to {high:g}. Give shares, not percent."
                )

    def headline(self) -> str:
        """Accuracy of every condition, averaged over families, and the majority rate."""
        means = self.data["accuracy"].mean("family")
        shares = [
            f"{name} {float(means.sel(condition=name)):.2f}" for name in means["condition"].values.tolist()
        ]
        return f"{', '.join(shares)}, majority {float(self.data['majority'].mean()):.2f}"
