"""The benchmarks run: small models, and what every way of running head masks gives.

Nothing here looks at a clock. The benchmarks themselves are scripts under ``tests/benchmarks``.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmlens.engine import PrefixRuns
from mmlens.metrics import as_metric
from tests.benchmarks import bench_gpu, bench_mask_memory, timing
from tests.benchmarks.naive import Naive
from tests.benchmarks.peers import ExpandedCache, Nnsight, TransformerLens
from tests.benchmarks.shape import Bench, Shape, build
from tests.benchmarks.timing import Method, Timings, interleaved

SMALL = Shape(n_layers=2, n_heads=4, d_model=32, d_mlp=48, d_vocab=64, n_system=3, grid=4, n_suffix=5)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return build(SMALL)


def values_of(run: Any, bench: Bench, n: int = 6) -> torch.Tensor:
    return run(bench.masks(n)).float()


@pytest.mark.parametrize("way", [TransformerLens, Nnsight, lambda bench: ExpandedCache(bench, 4)])
def test_peers_give_what_the_naive_way_gives(way: Any, bench: Bench) -> None:
    naive = values_of(Naive(bench), bench)
    assert float(naive.std()) > 1e-3  # the masks matter
    torch.testing.assert_close(values_of(way(bench), bench), naive, atol=1e-6, rtol=0)


def test_the_engine_gives_what_the_naive_way_gives(bench: Bench) -> None:
    runs = PrefixRuns(bench.model, bench.inputs, metric=as_metric("logit"), baseline="knockout")
    torch.testing.assert_close(values_of(runs, bench), values_of(Naive(bench), bench), atol=1e-6, rtol=0)


def test_peers_leave_the_benchmarked_model_alone(bench: Bench) -> None:
    before = values_of(Naive(bench), bench)
    kinds = {name: type(module) for name, module in bench.hf.named_modules()}
    values_of(TransformerLens(bench), bench)
    values_of(Nnsight(bench), bench)
    assert {name: type(module) for name, module in bench.hf.named_modules()} == kinds
    assert torch.equal(values_of(Naive(bench), bench), before)


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    found = Timings(
        wall={"slow": [10.0, 40.0, 30.0], "fast": [1.0, 2.0, 10.0]},
        values={"slow": torch.tensor([1.0, 2.0]), "fast": torch.tensor([1.5, 2.0, 9.0])},
        beside={"fast": [1e9, 1e9, 2e9]},
    )
    assert found.ratio("fast", "slow", "wall") == 10.0  # of 10, 20 and 3; not 30 / 2
    assert found.of_gemm("fast", 1e6) == pytest.approx(0.5)  # of 1, 0.5 and 0.05
    assert found.difference("fast", "slow") == 0.5


def test_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [1.0, 2.0, 4.0, 8.0, 16.0]
    monkeypatch.setattr(timing, "gemm_rate", iter(rates).__next__)
    order: list[str] = []

    def way(name: str) -> Method:
        def run(masks: torch.Tensor) -> torch.Tensor:
            order.append(f"{name}{len(masks)}")
            return masks.double().sum((1, 2))

        return Method(name=name, run=run, n_masks={"a": 1, "b": 3}[name])

    found = interleaved([way("a"), way("b")], torch.ones(3, 1, 2), rounds=2)
    assert order == ["a1", "b2", "a1", "b3", "a1", "b3"]
    assert len(found.wall["a"]) == len(found.cpu["b"]) == 2
    assert found.beside == {"a": [1.5, 6.0], "b": [3.0, 12.0]}  # mean of the rates before and after
    assert found.gemm == rates[1:]
    assert found.values["b"].tolist() == [2.0, 2.0, 2.0]


def test_the_rate_of_matrix_products_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "GEMM", (8, 8, 8))
    assert timing.gemm_rate() > 0


def test_the_gpu_benchmark_runs_on_a_small_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    monkeypatch.setattr(bench_gpu, "BATCHES", (16, None))
    assert bench_gpu.main(["--tiny", "--quick", "--rounds", "1", "--peak-tflops", "1"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0].split(",")[0].strip() for row in rows[2:]] == ["whole forwards", "engine", "engine"]
    assert all(float(row[-1]) < 1e-4 and row[5].strip().endswith("%") for row in rows[2:])
    assert (tmp_path / "build" / "bench_gpu.json").is_file()


def test_the_gpu_benchmark_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main([]) == 2
    assert "torch sees none" in capsys.readouterr().err


def test_memory_is_measured_above_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_mask_memory, "Shape", lambda: SMALL)
    for way in bench_mask_memory.WAYS:
        found = bench_mask_memory.measure(way, 4)
        assert found["finite"] and 0 <= found["peak"] < 2**27
