"""How the engine's advantage grows with the image, and what the other sizes do to it.

    python tests/benchmarks/bench_scaling.py [--quick] [--threads N] [--rounds N]

Random LLaVA-shaped decoders as in ``bench_engine.py`` (d_model 512, d_mlp 1376, 16 system tokens), knockout of a random
half of the heads; naive is one whole eager forward per mask. One model after another, naive and engine interleaved.

1. Image: 144, 576 and 2,304 tokens, suffix 32; 4 layers, and 12 layers for the largest.
2. Suffix: 16, 32 and 64 tokens behind 576 image tokens; 4 layers.
3. Heads: 8, 16 and 32 at the same d_model, so of width 64, 32 and 16; 576 + 32 tokens, 4 layers.
4. Masks at a time: 1, 4, 16, 64 and what the engine chooses; 576 + 32 tokens, 12 layers, 8 heads.

Work is that of a whole forward over that of the engine (``mmlens.recipes.engine_work``). Naive is faster or slower than
its share of work where its score tensors [head, query, key] fit into caches or not.

Writes build/bench_scaling.json and prints the tables of docs/benchmarks.md. Exits 1 below 100x at 2,304 image tokens
(12 layers), or where any logit differs by more than 1e-4. ``--quick`` leaves out the 12-layer model of 2,304 tokens and
demands nothing.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmlens.engine import PrefixRuns
from mmlens.metrics import as_metric
from mmlens.recipes.engine_work import executed_work, forward_work
from tests.benchmarks.counted import parts_of
from tests.benchmarks.naive import Naive
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

NAIVE = "naive"
LARGE = Shape(grid=48)
SHALLOW = 4
REQUIRED_RATIO, ALLOWED_DIFFERENCE = 100.0, 1e-4
BATCHES = (1, 4, 16, 64, None)


def tables_of_shapes(quick: bool) -> dict[str, list[Shape]]:
    images = [Shape(n_layers=SHALLOW, grid=grid) for grid in (12, 24, 48)]
    return {
        "image": images if quick else [*images, LARGE],
        "suffix": [Shape(n_layers=SHALLOW, n_suffix=n) for n in (16, 32, 64)],
        "heads": [Shape(n_layers=SHALLOW, n_heads=n) for n in (8, 16, 32)],
    }


def measured(
    bench: Bench, batches: tuple[int | None, ...], rounds: int, n_engine: int
) -> list[dict[str, Any]]:
    """One row per batch size, each beside the same naive runs."""
    options = {"metric": as_metric("logit"), "baseline": "knockout"}
    runs = {
        told(batch): PrefixRuns(bench.model, bench.inputs, batch_size=batch, **options) for batch in batches
    }
    methods = [Method(name=NAIVE, run=Naive(bench), n_masks=1)]
    for name, run in runs.items():
        methods.append(Method(name=name, run=run, n_masks=min(n_engine, 32 * run.batch_size)))
    masks = bench.masks(max(method.n_masks for method in methods))
    found = interleaved(methods, masks, rounds)
    rows = []
    for method in methods[1:]:
        run, shown = runs[method.name], masks[: method.n_masks]
        work = executed_work(bench.model.cfg, parts_of(bench.shape), shown, run.batch_size).total
        rows.append(row_of(bench.shape, found, method.name, work, run.batch_size, bench))
    return rows


def row_of(
    shape: Shape, found: Timings, name: str, work: float, batch_size: int, bench: Bench
) -> dict[str, Any]:
    return {
        **asdict(shape),
        "n_image": shape.n_image,
        "batch": name,
        "batch_size": batch_size,
        "naive_ms": found.milliseconds(NAIVE, "wall"),
        "ms_per_mask": found.milliseconds(name, "wall"),
        "ratio": found.ratio(name, NAIVE, "wall"),
        "cpu_ratio": found.ratio(name, NAIVE, "cpu"),
        "work_ratio": forward_work(bench.model.cfg, parts_of(shape)).total / work,
        "executed_of_gemm": found.of_gemm(name, work),
        "max_difference": found.difference(name, NAIVE),
        "surroundings": surroundings(found, len(found.wall[name])),
    }


def told(batch: int | None) -> str:
    return "chosen" if batch is None else str(batch)


COLUMNS = {
    "image": ("layers", "image tokens"),
    "suffix": ("suffix",),
    "heads": ("heads", "width of a head"),
    "batch": ("masks at a time",),
}
COMMON = (
    "naive, ms per mask",
    "engine",
    "ratio, wall clock",
    "CPU time",
    "work",
    "executed of GEMM",
    "largest difference",
)


def cells(kind: str, row: dict[str, Any]) -> list[str]:
    first = {
        "image": (row["n_layers"], f"{row['n_image']:,}"),
        "suffix": (row["n_suffix"],),
        "heads": (row["n_heads"], row["d_model"] // row["n_heads"]),
        "batch": (f"{row['batch_size']} (chosen)" if row["batch"] == "chosen" else row["batch"],),
    }[kind]
    return [
        *map(str, first),
        f"{row['naive_ms']:,.0f}",
        f"{row['ms_per_mask']:.1f}",
        f"{row['ratio']:.1f}×",
        f"{row['cpu_ratio']:.1f}×",
        f"{row['work_ratio']:.1f}×",
        f"{row['executed_of_gemm']:.0%}",
        f"{row['max_difference']:.1e}",
    ]


def main() -> int:
    options = read(parser_of(__doc__, rounds=3, quick_rounds=1))
    n_engine = 32 if options.quick else 128
    found: dict[str, list[dict[str, Any]]] = {}
    known: dict[Shape, dict[str, Any]] = {}
    for kind, shapes in tables_of_shapes(options.quick).items():
        for shape in shapes:
            if shape not in known:
                known[shape] = measured(build(shape), (None,), options.rounds, n_engine)[0]
        found[kind] = [known[shape] for shape in shapes]
        shown(kind, found[kind])
    found["batch"] = measured(build(Shape()), BATCHES, options.rounds, n_engine)
    shown("batch", found["batch"])
    save("bench_scaling", {"tables": found, "rounds": options.rounds})
    rows = [row for table_rows in found.values() for row in table_rows]
    worst = max(row["max_difference"] for row in rows)
    ratios = [row["ratio"] for row in rows if (row["n_image"], row["n_layers"]) == (2304, LARGE.n_layers)]
    good = worst <= ALLOWED_DIFFERENCE and min(ratios, default=REQUIRED_RATIO) >= REQUIRED_RATIO
    asked = [f"all within {ALLOWED_DIFFERENCE:.0e} ({worst:.1e})"]
    if ratios:
        asked.append(f"at least {REQUIRED_RATIO:.0f} times as fast at 2,304 image tokens ({ratios[0]:.0f})")
    say(f"{'met   ' if good else 'MISSED'} {', '.join(asked)}")
    return 0 if good else 1


def shown(kind: str, rows: list[dict[str, Any]]) -> None:
    say(
        table((*COLUMNS[kind], *COMMON), [cells(kind, row) for row in rows]),
        f"{rows[-1]['surroundings']}\n",
    )


if __name__ == "__main__":
    raise SystemExit(main())
