"""The engine beside other tools: Hugging Face, TransformerLens, nnsight, and a key-value cache expanded to a batch.

    python tests/benchmarks/bench_peers.py [--quick] [--threads N] [--rounds N]

Model and prompt as in ``bench_engine.py``: 16 system + 576 image + 32 suffix tokens, d_model 512, 12 layers, 8 heads;
knockout of a random half of the heads. Each tool as its documentation would have it (``peers.py``, ``naive.py``); all
read embeddings in which the image is encoded. Interleaved in one run; medians over rounds, by the wall clock and in CPU
time of the whole process, since nnsight runs interventions on threads of its own.

Writes build/bench_peers.json and prints the table of docs/benchmarks.md. Exits 1 where the engine is less than 25x as
fast as naive Hugging Face, TransformerLens or nnsight, or where any logit differs by more than 1e-4.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmlens.engine import PrefixRuns
from mmlens.metrics import as_metric
from tests.benchmarks.naive import Naive
from tests.benchmarks.peers import ExpandedCache, Nnsight, TransformerLens
from tests.benchmarks.shape import Bench, Shape, build
from tests.benchmarks.timing import (
    Method,
    Timings,
    interleaved,
    parser_of,
    read,
    save,
    say,
    surroundings,
    table,
)

OURS = "mmlens, prefix engine"
NAIVE, TL, NNSIGHT = "naive Hugging Face, eager", "TransformerLens 4.3 bridge", "nnsight 0.8 trace"
WHOLE = (NAIVE, TL, NNSIGHT)
"""Ways that run the whole model for every mask."""
REQUIRED_RATIO, ALLOWED_DIFFERENCE = 25.0, 1e-4


def methods_of(bench: Bench, *, n_whole: int, n_cached: int, n_ours: int) -> list[Method]:
    ours = PrefixRuns(bench.model, bench.inputs, metric=as_metric("logit"), baseline="knockout")
    methods = [
        Method(name=NAIVE, run=Naive(bench), n_masks=n_whole),
        Method(name=TL, run=TransformerLens(bench), n_masks=n_whole),
        Method(name=NNSIGHT, run=Nnsight(bench), n_masks=n_whole),
    ]
    for size in (8, 16):
        name = f"Hugging Face, expanded cache, sdpa, {size} at a time"
        methods.append(Method(name=name, run=ExpandedCache(bench, size), n_masks=n_cached))
    return [*methods, Method(name=OURS, run=ours, n_masks=n_ours)]


def rows_of(found: Timings) -> list[dict[str, float | str]]:
    return [
        {
            "method": name,
            "ms_per_mask": found.milliseconds(name, "wall"),
            "cpu_ms_per_mask": found.milliseconds(name, "cpu"),
            "ratio_of_ours": found.ratio(OURS, name, "wall"),
            "cpu_ratio_of_ours": found.ratio(OURS, name, "cpu"),
            "max_difference": found.difference(name, NAIVE),
        }
        for name in found.values
    ]


HEADER = (
    "method",
    "ms per mask",
    "CPU ms per mask",
    "the engine is faster, wall clock",
    "CPU time",
    "largest difference from naive",
)


def main() -> int:
    options = read(parser_of(__doc__, rounds=5, quick_rounds=2))
    counts = {"n_whole": 1, "n_cached": 16, "n_ours": 64} if options.quick else {}
    bench = build(Shape())
    methods = methods_of(bench, **({"n_whole": 2, "n_cached": 32, "n_ours": 128} | counts))
    found = interleaved(methods, bench.masks(methods[-1].n_masks), options.rounds)
    rows = rows_of(found)
    save(
        "bench_peers",
        {
            "rows": rows,
            "rounds": options.rounds,
            "gemm_gflops": [rate / 1e9 for rate in found.gemm],
            "masks": {method.name: method.n_masks for method in methods},
        },
    )
    cells = [
        [
            str(row["method"]),
            f"{row['ms_per_mask']:.1f}",
            f"{row['cpu_ms_per_mask']:.1f}",
            f"{row['ratio_of_ours']:.1f}×",
            f"{row['cpu_ratio_of_ours']:.1f}×",
            f"{row['max_difference']:.1e}",
        ]
        for row in rows
    ]
    say(table(HEADER, cells), surroundings(found, options.rounds))
    slow = {str(row["method"]): float(row["ratio_of_ours"]) for row in rows if row["method"] in WHOLE}
    worst = max(float(row["max_difference"]) for row in rows)
    good = min(slow.values()) >= REQUIRED_RATIO and worst <= ALLOWED_DIFFERENCE
    say(
        f"{'met   ' if good else 'MISSED'} at least {REQUIRED_RATIO:.0f} times as fast as each of the first three "
        f"({min(slow.values()):.1f}), all within {ALLOWED_DIFFERENCE:.0e} ({worst:.1e})"
    )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
