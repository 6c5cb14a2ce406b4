"""Timing methods side by side: interleaved rounds, medians of ratios per round, the GEMM rate around each run."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mmlens.recipes.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[2]
GEMM = (1024, 512, 2752)
"""Rows, inner and outer width of the matrix product that the rate is measured with: an MLP of 32 masks' suffixes."""
GEMM_PRODUCTS = 60

Run = Callable[[torch.Tensor], torch.Tensor]
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to run head masks: Bool[mask, layer, head] → the answer's logit; ``n_masks`` of them in every round.

    ``n_warm`` are run beforehand: a whole batch where batches of another size are compiled again.
    """

    name: str
    run: Run
    n_masks: int
    n_warm: int = 2


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Milliseconds per mask of every method in every round, what it gave last, and the GEMM rates of the run.

    ``beside`` holds the GEMM rate of the moment, before and after each run of a method: clocks drift.
    """

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    gemm: list[float] = field(default_factory=list)  # FLOP/s
    beside: dict[str, list[float]] = field(default_factory=dict)  # FLOP/s

    def milliseconds(self, name: str, clock: Clock) -> float:
        return statistics.median(getattr(self, clock)[name])

    def ratio(self, name: str, to: str, clock: Clock) -> float:
        """How many times longer ``to`` takes: median of the rounds' ratios."""
        pairs = zip(getattr(self, clock)[to], getattr(self, clock)[name], strict=True)
        return statistics.median(other / own for other, own in pairs)

    def of_gemm(self, name: str, flops: float) -> float:
        """Share of the GEMM rate that ``flops`` per mask amount to: median of the rounds' shares, by the wall clock."""
        pairs = zip(self.wall[name], self.beside[name], strict=True)
        return statistics.median(flops / (ms / 1e3) / rate for ms, rate in pairs)

    def difference(self, name: str, other: str) -> float:
        """Largest difference of the values, over the masks that both ran."""
        ours, theirs = self.values[name], self.values[other]
        n = min(len(ours), len(theirs))
        return float((ours[:n] - theirs[:n]).abs().max())


def interleaved(methods: Sequence[Method], masks: torch.Tensor, rounds: int) -> Timings:
    """Runs every method once per round, one after the other; the GEMM rate is taken between them."""
    found = Timings()
    for method in methods:
        method.run(masks[: min(method.n_warm, method.n_masks)])
    rate = gemm_rate()
    for _ in range(rounds):
        for method in methods:
            given = masks[: method.n_masks]
            wall, cpu = time.perf_counter(), time.process_time()
            found.values[method.name] = method.run(given)
            found.wall.setdefault(method.name, []).append((time.perf_counter() - wall) / len(given) * 1e3)
            found.cpu.setdefault(method.name, []).append((time.process_time() - cpu) / len(given) * 1e3)
            before, rate = rate, gemm_rate()
            found.beside.setdefault(method.name, []).append((before + rate) / 2)
            found.gemm.append(rate)
    return found


def gemm_rate() -> float:
    """FLOP/s of matrix products of the engine's size, on as many threads, over as long a stretch as a method's."""
    rows, inner, outer = GEMM
    a, b = torch.randn(rows, inner), torch.randn(inner, outer)
    torch.mm(a, b)
    started = time.perf_counter()
    for _ in range(GEMM_PRODUCTS):
        torch.mm(a, b)
    return GEMM_PRODUCTS * 2 * rows * inner * outer / (time.perf_counter() - started)


def parser_of(doc: str | None, *, rounds: int, quick_rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have; read them with ``read``."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help=f"{quick_rounds} rounds, few masks")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own)")
    parser.add_argument(
        "--rounds", type=int, default=None, help=f"rounds (default {rounds}, quick {quick_rounds})"
    )
    parser.set_defaults(usual_rounds=(rounds, quick_rounds))
    return parser


def read(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser.parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.rounds = options.rounds or options.usual_rounds[options.quick]
    return options


def save(name: str, report: dict[str, Any]) -> None:
    """Writes build/NAME.json, with what it was measured on."""
    report = report | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / f"{name}.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


def say(*parts: str) -> None:
    sys.stdout.write("\n\n".join(parts) + "\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, rows)


def surroundings(found: Timings, rounds: int) -> str:
    """The line under a table: what it was measured on."""
    rate = statistics.median(found.gemm) / 1e9
    threads = torch.get_num_threads()
    return (
        f"{threads} thread{'s' * (threads > 1)}, GEMM {rate:.0f} GFLOP/s (median), torch "
        f"{torch.__version__}, medians of {rounds} interleaved rounds."
    )
