"""A prompt that is ready to be run under any number of head masks."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mmlens.engine.batching import is_out_of_memory
from mmlens.engine.freed_memory import keep_freed_memory
from mmlens.errors import ConfigError, InterventionError, MemoryShortage, ShapeError
from mmlens.inputs import Inputs
from mmlens.interventions import HEAD_BASELINES, HeadBaseline, ImageKV
from mmlens.metrics import Metric, check_answers, check_finite
from mmlens.model import HookedVLM


class MaskedRuns(ABC):
    """One sample, one metric, one baseline; call it with head masks.

    Attributes:
        engine: ``prefix`` or ``plain``.
        n_runs: masks run so far.
        batch_size: masks run together; halved whenever memory runs out.
        n_halvings: how often that happened.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        model: HookedVLM,
        inputs: Inputs,
        *,
        metric: Metric,
        baseline: HeadBaseline | ImageKV,
        batch_size: int,
    ) -> None:
        if inputs.batch_size != 1:
            raise ShapeError(
                f"head masks are run one sample at a time, not {inputs.batch_size}: inputs.select([i])."
            )
        if isinstance(baseline, str) and baseline not in HEAD_BASELINES:
            raise InterventionError(
                f"baseline {baseline!r} is unknown; known: {', '.join(HEAD_BASELINES)}, or an ImageKV."
            )
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}; at least 1 mask must run at a time.")
        check_answers(inputs, model.cfg.d_vocab, metric)
        keep_freed_memory()
        self.model, self.inputs, self.metric = model, inputs, metric
        self.baseline: HeadBaseline | ImageKV = baseline
        self.batch_size = batch_size
        self.n_runs = self.n_halvings = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads of the model."""
        return self.model.cfg.n_layers, self.model.cfg.n_heads

    def __call__(
        self, masks: Bool[Tensor, "mask layer head"], *, progress: tqdm | None = None
    ) -> Float[Tensor, " mask"]:
        """The metric under each head mask, in its unit.

        Args:
            masks: 1 = the head reads the image.
            progress: bar that is moved on by the number of masks.

        Raises:
            ShapeError: the masks are not Bool[mask, layer, head] of this model.
            NonFiniteError: the metric is not finite under some mask.
            EngineNotExact: hooks were added to the model, which this engine does not run.
            MemoryShortage: memory ran out with one mask at a time.
        """
        fits = masks.dtype == torch.bool and masks.ndim == 3 and tuple(masks.shape[1:]) == self.shape
        if not fits or len(masks) == 0:
            raise ShapeError(
                f"head masks must be Bool[mask, layer, head] = [n, {self.shape[0]}, {self.shape[1]}], n > 0; given "
                f"{masks.dtype} {list(masks.shape)}."
            )
        self.check_ready()
        values = torch.empty(len(masks), dtype=torch.float64)
        order, done = self.order(masks), 0
        while done < len(order):
            batch = order[done : done + self.batch_size]
            found = self._attempt(masks, batch)
            if found is None:
                self._halve()
                continue
            values[batch] = found
            done += len(batch)
            if progress is not None:
                progress.update(len(batch))
        self.n_runs += len(masks)
        return check_finite(values, self.metric)

    @torch.no_grad()
    def _attempt(self, masks: Bool[Tensor, "mask layer head"], batch: Tensor) -> Tensor | None:
        """The metric under one batch; None if memory ran out. Nothing of the attempt stays alive then."""
        try:
            return self.run_batch(masks[self._padded(batch, len(masks))])[: len(batch)].double().cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.batch_size == 1:
                raise MemoryShortage(
                    f"memory ran out with one head mask at a time ({self.inputs.n_pos} tokens, engine "
                    f"{self.engine!r}): free some, use a shorter prompt, or place the model on more devices."
                ) from error
        return None

    def _halve(self) -> None:
        self.batch_size //= 2
        self.n_halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _padded(self, batch: Tensor, n_masks: int) -> Tensor:
        """The batch, its last mask repeated, so that all batches of a call have one shape."""
        missing = min(self.batch_size, n_masks) - len(batch)
        return torch.cat([batch, batch[-1:].expand(missing)])

    def check_ready(self) -> None:  # noqa: B027 - the plain path is always ready
        """Raises if the model has changed so that runs would be wrong."""

    def order(self, masks: Bool[Tensor, "mask layer head"]) -> Tensor:
        """Order in which to run the masks."""
        return torch.arange(len(masks))

    @abstractmethod
    def run_batch(self, masks: Bool[Tensor, "mask layer head"]) -> Float[Tensor, " mask"]:
        """The metric under a batch of masks."""
