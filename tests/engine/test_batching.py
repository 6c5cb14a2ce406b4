from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from mmlens.engine import PlainRuns, PrefixRuns, batching
from mmlens.engine.batching import auto_batch_size, is_out_of_memory, mask_bytes
from mmlens.errors import MemoryShortage
from mmlens.metrics import as_metric
from tests.engine.build import random_masks, tiny_model, tiny_sample

LOGIT = as_metric("logit")
CPU = torch.device("cpu")


def size(n_suffix: int, **widths: int) -> int:
    cfg = replace(tiny_model().cfg, **widths)
    return auto_batch_size(cfg, n_suffix=n_suffix, n_system=3, device=CPU, dtype=torch.float32)


def test_size_shrinks_with_the_suffix() -> None:
    assert size(32) == 64
    assert size(5000) == 1
    assert size(1) == 256


def test_compiled_graphs_get_twice_as_many() -> None:
    cfg, sizes = tiny_model().cfg, {"n_suffix": 32, "n_system": 3}
    assert auto_batch_size(cfg, **sizes, device=CPU, dtype=torch.float32, compiled=True) == 128


def test_size_shrinks_with_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes at most half of what is free."""
    cfg = replace(tiny_model().cfg, d_mlp=2**20)
    each = mask_bytes(cfg, n_suffix=32, n_system=3, dtype=torch.float32)
    assert each > 4 * 32 * 2**20 * 4
    scores = batching.MAX_SCORES * 8
    for free, expected in (
        (2 * (scores + 5.5 * each), 5),
        (2 * (scores + 1.5 * each), 1),
        (0, 1),
        (1e18, 64),
    ):
        monkeypatch.setattr(batching, "free_bytes", lambda device, free=free: int(free))
        assert size(32, d_mlp=2**20) == expected


def test_free_memory_of_this_machine() -> None:
    free = batching.free_bytes(CPU)
    assert 2**20 < free <= psutil.virtual_memory().total


def test_estimate_covers_what_a_layer_really_allocates() -> None:
    """Twice the masks: the peak of live activations grows by no more than the estimate, and by a good part of it."""
    model = tiny_model(n_kv=2)
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, baseline="knockout")
    sizes = {"n_suffix": runs.state.n_suffix, "n_system": 3, "dtype": torch.float32}
    grown = (live_peak(runs, 128) - live_peak(runs, 64)) / 64
    estimated = mask_bytes(model.cfg, **sizes)
    assert 0.3 * estimated < grown <= 1.5 * estimated


def live_peak(runs: PrefixRuns, n: int) -> int:
    """Largest sum of bytes alive at once, from the profiler's record of allocations."""
    from torch.profiler import ProfilerActivity, profile

    masks = random_masks(n)
    runs.batch_size = n
    runs(masks)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        runs(masks)
    alive = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


class Scarce:
    """Runs out of memory above so many masks, as the device's allocator says it."""

    def __init__(self, runs: Any, most: int, error: Exception) -> None:
        self.run, self.most, self.error, self.sizes = runs.run_batch, most, error, []

    def __call__(self, masks: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(masks))
        if len(masks) > self.most:
            raise self.error
        return self.run(masks)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("kind", [PrefixRuns, PlainRuns])
def test_memory_that_runs_out_halves_the_batch_and_nothing_is_lost(kind: Any, error: Exception) -> None:
    model = tiny_model()
    masks = random_masks(11)
    whole = kind(model, tiny_sample(model), metric=LOGIT, batch_size=8)(masks)
    runs = kind(model, tiny_sample(model), metric=LOGIT, batch_size=8)
    runs.run_batch = Scarce(runs, 3, error)
    torch.testing.assert_close(runs(masks), whole, atol=1e-6, rtol=0)
    assert (runs.batch_size, runs.n_halvings, runs.n_runs) == (2, 2, 11)
    assert runs.run_batch.sizes == [
        8,
        4,
        2,
        2,
        2,
        2,
        2,
        2,
    ]  # what was done is not done again; the last is padded


def test_one_mask_that_does_not_fit_is_an_error() -> None:
    model = tiny_model()
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, batch_size=4)
    runs.run_batch = Scarce(runs, 0, ERRORS[0])
    with pytest.raises(MemoryShortage, match="one head mask at a time"):
        runs(random_masks(5))


def test_other_errors_pass() -> None:
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    model = tiny_model()
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, batch_size=4)
    runs.run_batch = Scarce(runs, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        runs(random_masks(5))
    assert runs.batch_size == 4


def test_memory_runs_out_for_real() -> None:
    """An allocation that no machine can grant raises what ``is_out_of_memory`` knows."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
