"""Memory does not grow with the number of masks, and no mask gets a copy of the prefix.

A recorder sees every tensor that an operation makes. Sizes are chosen so that an axis tells what it counts: 13 masks
run together, and no other size is a multiple of 13.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlens.engine import PrefixRuns, image_segment, masked_runs, shared_prefix
from mmlens.engine.kernels import attend_explicitly
from mmlens.metrics import as_metric
from tests.engine.build import random_masks, tiny_model, tiny_sample
from tests.tiny import N_IMAGE_TOKENS

N_BEFORE, N_AFTER, BATCH = 3, 6, 13
PREFIX_LENGTHS = (N_IMAGE_TOKENS, N_BEFORE + N_IMAGE_TOKENS, N_BEFORE + N_IMAGE_TOKENS + N_AFTER)
BYTES_OF_A_MASK = 16
"""Its place in the order, and its value; the masks themselves are the caller's."""

BATCH_LEFT = 64 * 8
"""The values of a batch, which are there until the next batch has its own."""


class Made(TorchDispatchMode):
    """Shapes of the tensors that operations made, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= tensor.nbytes:
                self.shapes.add(tuple(tensor.shape))
        return out


def copies_of_the_prefix(shapes: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes with an axis of masks and one as long as the image, the prefix or the prompt."""

    def is_one(shape: tuple[int, ...]) -> bool:
        masks = [size for size in shape if size and size % BATCH == 0]
        return bool(masks) and any(size in PREFIX_LENGTHS for size in shape)

    return sorted(shape for shape in shapes if is_one(shape))


def shapes_made(baseline: Any, n_kv: int = 4) -> set[tuple[int, ...]]:
    model = tiny_model(n_kv=n_kv)
    inputs = tiny_sample(model, N_BEFORE, N_AFTER)
    runs = PrefixRuns(model, inputs, metric=as_metric("logit"), baseline=baseline, batch_size=BATCH)
    with Made() as made:
        runs(random_masks(3 * BATCH))
    return made.shapes


@pytest.mark.parametrize("n_kv", [4, 1])  # two key-value heads are as wide as the image is long
@pytest.mark.parametrize("baseline", ["knockout", "mean_image_tokens", "zero"])
def test_no_tensor_has_masks_and_prefix(baseline: Any, n_kv: int) -> None:
    shapes = shapes_made(baseline, n_kv)
    assert any(BATCH in shape for shape in shapes)
    assert copies_of_the_prefix(shapes) == []


def test_the_recorder_sees_a_copy_of_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    def copying(q: torch.Tensor, keep: Any, k: torch.Tensor, v: torch.Tensor, scale: float, cap: Any) -> Any:
        k, v = (x.expand(len(q), -1, -1, -1).clone() for x in (k, v))
        out, lse = attend_explicitly(q.transpose(1, 2), k, v, scale)
        return out.transpose(1, 2), lse.transpose(1, 2)

    monkeypatch.setattr(masked_runs, "read_by_open_heads", copying)
    assert (BATCH, 4, N_IMAGE_TOKENS, 8) in copies_of_the_prefix(shapes_made("knockout"))


def test_scores_are_the_only_ones_where_no_fused_kernel_is_and_they_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The explicit form holds scores [1, head, masks × queries, image], some queries at a time."""
    for module in (shared_prefix, image_segment):
        monkeypatch.setattr(module, "attend", attend_explicitly)
    monkeypatch.setattr(
        masked_runs, "read_by_open_heads", image_segment.read_by_all_heads
    )  # else fewer queries
    found = copies_of_the_prefix(shapes_made("knockout"))
    assert found and set(found) <= {(1, 4, BATCH * n, N_IMAGE_TOKENS) for n in (1, N_AFTER)} | {
        (4, BATCH * n, N_IMAGE_TOKENS) for n in (1, N_AFTER)
    }
    monkeypatch.setattr("mmlens.engine.kernels.MAX_SCORES", 4 * N_IMAGE_TOKENS * 5)
    assert copies_of_the_prefix(shapes_made("knockout")) == []  # five queries at a time


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that PyTorch's allocator held at once for ``run``, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    kineto: Any = profiled.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def test_the_peak_does_not_depend_on_the_number_of_masks() -> None:
    model = tiny_model()
    runs = PrefixRuns(model, tiny_sample(model), metric=as_metric("logit"), batch_size=64)
    few, many = random_masks(64), random_masks(4096)
    runs(few)
    peaks = [peak_bytes(lambda masks=masks: runs(masks)) for masks in (few, many)]
    assert peaks[0] > 64 * N_IMAGE_TOKENS  # the profiler saw it
    assert peaks[1] - peaks[0] <= BYTES_OF_A_MASK * (4096 - 64) + BATCH_LEFT
