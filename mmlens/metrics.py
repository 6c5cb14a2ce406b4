"""Scalar metrics of a run: what one answer's logits say, with a unit.

A metric maps logits ``[batch, pos, d_vocab]`` and the inputs to one number per sample, read at the last
position (prompts are padded on the left, so that is the position that predicts the answer). It also names the
vocabulary columns it needs, so that a sweep over thousands of head masks unembeds only those.

Any callable with that signature serves wherever a metric is asked for.

Source: head attribution (arXiv 2509.17588) reads the logit of the answer's first token; the other metrics are
the usual alternatives, and which one is right depends on the question.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.errors import AnswerError, MetricError, NonFiniteError
from mmlens.inputs import Inputs


class Metric(ABC):
    """One number per sample from the logits at the last position.

    Attributes:
        name: short name, as in results and figures.
        unit: ``logit``, ``nat`` or ``probability``.
    """

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def columns(self, inputs: Inputs) -> Int[Tensor, "batch column"] | None:
        """Vocabulary ids that the metric reads, per sample; None for all of them.

        Raises:
            AnswerError: the inputs have no answer, or no foil, that the metric needs.
        """

    @abstractmethod
    def read(self, logits: Float[Tensor, "row column"], inputs: Inputs) -> Float[Tensor, " row"]:
        """The metric of rows of final logits, holding the columns that ``columns`` asked for.

        Args:
            logits: one row per sample, or any number of rows if ``inputs`` holds one sample.
            inputs: the samples.
        """

    def of(self, samples: Sequence[int]) -> "Metric":
        """The metric for these samples of a batch, in this order: the same, unless it keeps values per sample."""
        return self

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], inputs: Inputs) -> Float[Tensor, " batch"]:
        """The metric of each sample, in ``unit``, in at least float32.

        Raises:
            AnswerError: the inputs have no answer, or no foil, that the metric needs.
        """
        final_logits = _at_least_float32(logits[:, -1])
        ids = self.columns(inputs)
        return self.read(
            final_logits if ids is None else final_logits.gather(1, ids.to(logits.device)), inputs
        )


@final
@dataclass(frozen=True)
class Logit(Metric):
    """Logit of the answer's first token."""

    name: ClassVar[str] = "logit"
    unit: ClassVar[str] = "logit"

    def columns(self, inputs: Inputs) -> Int[Tensor, "batch 1"]:
        """The answer's id."""
        return answer_ids(inputs)[:, None]

    def read(self, logits: Float[Tensor, "row 1"], inputs: Inputs) -> Float[Tensor, " row"]:
        """The only column."""
        return logits[:, 0]


@final
@dataclass(frozen=True)
class LogitDiff(Metric):
    """Logit of the answer minus logit of the foil."""

    name: ClassVar[str] = "logit_diff"
    unit: ClassVar[str] = "logit"

    def columns(self, inputs: Inputs) -> Int[Tensor, "batch 2"]:
        """The answer's and the foil's ids."""
        return torch.stack([answer_ids(inputs), foil_ids(inputs)], dim=1)

    def read(self, logits: Float[Tensor, "row 2"], inputs: Inputs) -> Float[Tensor, " row"]:
        """First column minus second."""
        return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True)
class _WholeVocabulary(Metric):
    def columns(self, inputs: Inputs) -> None:
        """All of them, once the inputs are known to have answers."""
        answer_ids(inputs)


@final
@dataclass(frozen=True)
class CentredLogit(_WholeVocabulary):
    """Logit of the answer minus the mean logit over the vocabulary: blind to a shift of all logits."""

    name: ClassVar[str] = "centred_logit"
    unit: ClassVar[str] = "logit"

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """Answer minus mean."""
        return _answer_column(logits, inputs) - logits.mean(dim=1)


@final
@dataclass(frozen=True)
class Margin(_WholeVocabulary):
    """Logit of the answer minus the highest other logit: positive exactly when the answer would be chosen."""

    name: ClassVar[str] = "margin"
    unit: ClassVar[str] = "logit"

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """Answer minus best other."""
        ids = _rows_of_answers(logits, inputs)
        others = logits.scatter(1, ids, -torch.inf)
        return _answer_column(logits, inputs) - others.amax(dim=1)


@final
@dataclass(frozen=True)
class LogProb(_WholeVocabulary):
    """Natural logarithm of the answer's probability."""

    name: ClassVar[str] = "log_prob"
    unit: ClassVar[str] = "nat"

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """Answer minus log-sum-exp."""
        return _answer_column(logits, inputs) - logits.logsumexp(dim=1)


@final
@dataclass(frozen=True)
class Prob(_WholeVocabulary):
    """Probability of the answer."""

    name: ClassVar[str] = "prob"
    unit: ClassVar[str] = "probability"

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """Softmax at the answer."""
        return (_answer_column(logits, inputs) - logits.logsumexp(dim=1)).exp()


@final
@dataclass(frozen=True, eq=False)
class KL(Metric):
    """Minus the Kullback-Leibler divergence from a reference run: 0 = the same distribution, else negative.

    Negative, so that more is better, as with every other metric.

    Attributes:
        reference: final logits of the reference (clean) run, one row per sample, or one for all rows.
    """

    name: ClassVar[str] = "kl"
    unit: ClassVar[str] = "nat"
    reference: Float[Tensor, "row d_vocab"]

    def of(self, samples: Sequence[int]) -> "KL":
        """The same with the reference's rows of these samples."""
        return KL(reference=self.reference[list(samples)])

    def columns(self, inputs: Inputs) -> None:
        """All of them."""

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """``-sum p (log p - log q)`` with p the reference and q the row."""
        wanted = _at_least_float32(self.reference.to(logits.device)).log_softmax(dim=1)
        if len(wanted) not in (1, len(logits)):
            raise MetricError(
                f"kl has {len(wanted)} reference rows for {len(logits)} rows of logits; choose them with .of(samples)."
            )
        return -(wanted.exp() * (wanted - logits.log_softmax(dim=1))).sum(dim=1)


@final
@dataclass(frozen=True)
class CustomMetric(Metric):
    """A user's callable. Called with one row at a time, as logits ``[1, 1, d_vocab]`` of the last position.

    Attributes:
        function: ``(logits [batch pos d_vocab], inputs) -> [batch]``.
        label: name in results and figures.
        unit_label: unit in results and figures.
    """

    function: Callable[[Tensor, Inputs], Tensor]
    label: str = "custom"
    unit_label: str = "unknown"

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name given by the user, or that of the function."""
        return self.label

    @property
    def unit(self) -> str:  # type: ignore[override]
        """Unit given by the user."""
        return self.unit_label

    def columns(self, inputs: Inputs) -> None:
        """All of them: what a callable reads is not known."""

    def read(self, logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
        """Calls the function once per row, with that row's sample."""
        values = []
        for i, row in enumerate(logits):
            sample = inputs if inputs.batch_size == 1 else inputs.select([i])
            value = self.function(row[None, None], sample)
            if not isinstance(value, Tensor) or value.shape != (1,) or not value.is_floating_point():
                given = (
                    f"{value.dtype} {tuple(value.shape)}"
                    if isinstance(value, Tensor)
                    else type(value).__name__
                )
                raise MetricError(
                    f"metric {self.label!r} returned {given} for one sample; it must return a float tensor "
                    "of shape "
                    "[batch] (here [1])."
                )
            values.append(value)
        return torch.cat(values)


METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (Logit(), LogitDiff(), CentredLogit(), Margin(), LogProb(), Prob())
}
"""Name → metric."""


def as_metric(metric: Any, *, reference: Float[Tensor, "row d_vocab"] | None = None) -> Metric:
    """The metric that a name, a metric or a callable stands for.

    Args:
        metric: a name, a metric or a callable.
        reference: final logits of the clean run, for ``"kl"``.

    Raises:
        MetricError: an unknown name, or something that cannot be called.
    """
    if isinstance(metric, Metric):
        return metric
    if metric == "kl":
        if reference is None:
            raise MetricError(
                "metric 'kl' compares with a clean run, and this analysis has none; use log_prob."
            )
        return KL(reference=reference)
    if isinstance(metric, str):
        if metric not in METRICS:
            raise MetricError(f"metric {metric!r} is unknown; known: {', '.join(METRICS)}, or any callable.")
        return METRICS[metric]
    if not callable(metric):
        raise MetricError(
            f"a metric is a name ({', '.join(METRICS)}) or a callable (logits, inputs) -> [batch], "
            f"not {type(metric).__name__}."
        )
    function: Callable[..., Any] = metric
    return CustomMetric(function=function, label=getattr(metric, "__name__", type(metric).__name__))


def check_finite(values: Float[Tensor, " row"], metric: Metric) -> Float[Tensor, " row"]:
    """The values, if all are finite.

    Raises:
        NonFiniteError: some are not.
    """
    bad = (~torch.isfinite(values)).nonzero()[:, 0]
    if len(bad):
        raise NonFiniteError(
            f"metric {metric.name!r} is {values[bad[0]].item()} in {len(bad)} of {len(values)} runs (the "
            "first: "
            f"run {bad[0].item()}). Look for non-finite activations or weights, or another dtype."
        )
    return values


def answer_ids(inputs: Inputs) -> Int[Tensor, " batch"]:
    """Token id of every sample's answer.

    Raises:
        AnswerError: some sample has none.
    """
    return _present(inputs.answer_ids, "answer", inputs)


def foil_ids(inputs: Inputs) -> Int[Tensor, " batch"]:
    """Token id of every sample's foil, the wrong answer that it is compared with.

    Raises:
        AnswerError: some sample has none.
    """
    return _present(inputs.foil_ids, "foil", inputs)


def check_answers(inputs: Inputs, d_vocab: int, metric: Metric | None = None) -> None:
    """Refuses, before anything is run, answers and foils that are missing or no token of the model.

    Args:
        inputs: the samples.
        d_vocab: size of the vocabulary.
        metric: what will be measured; None if nothing that needs answers.

    Raises:
        AnswerError: an id lies outside the vocabulary, or the metric needs one that a sample lacks.
    """
    for what, ids in (("answer", inputs.answer_ids), ("foil", inputs.foil_ids)):
        outside = [] if ids is None else (ids >= d_vocab).nonzero()[:, 0].tolist()
        if ids is not None and outside:
            raise AnswerError(
                f"the {what} of sample {outside[0]} is token {int(ids[outside[0]])}, but the vocabulary has {d_vocab} "
                f"tokens ({len(outside)} of {inputs.batch_size}). Is the tokenizer that of this model?"
            )
    if metric is not None:
        metric.columns(inputs)


def _present(ids: Int[Tensor, " batch"] | None, what: str, inputs: Inputs) -> Int[Tensor, " batch"]:
    missing = list(range(inputs.batch_size)) if ids is None else (ids < 0).nonzero()[:, 0].tolist()
    if ids is None or missing:
        raise AnswerError(
            f"the metric needs the {what} of every sample; sample {missing[0]} has none "
            f"({len(missing)} of {inputs.batch_size}). Give Prompt(..., {what}='word')."
        )
    return ids


def _rows_of_answers(logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Int[Tensor, "row 1"]:
    return answer_ids(inputs).to(logits.device).expand(len(logits))[:, None]


def _answer_column(logits: Float[Tensor, "row d_vocab"], inputs: Inputs) -> Float[Tensor, " row"]:
    return logits.gather(1, _rows_of_answers(logits, inputs))[:, 0]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
