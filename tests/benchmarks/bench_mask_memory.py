"""Peak memory by number of head masks: the engine, naive forwards, and a key-value cache expanded to a batch.

    python tests/benchmarks/bench_mask_memory.py [--quick] [--threads N] [--rounds N]

Model and prompt as in ``bench_engine.py``. Every row is a fresh process that builds the model, then measures its
private memory (what no file backs, looked at every millisecond) above that: preparing the prompt and running all masks.
The allocator gives freed blocks back at once in these processes (``MALLOC_MMAP_THRESHOLD_``, glibc), so that a peak is
of what is held and not of what was kept for later. With several rounds the median peak is shown.

Writes build/bench_mask_memory.json and prints the table of docs/benchmarks.md. Exits 1 where the engine's peak under
the most masks is more than a tenth above that under the fewest. ``--quick`` stops at 512 masks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmlens.engine import PrefixRuns  # noqa: E402
from mmlens.metrics import as_metric  # noqa: E402
from tests.benchmarks.naive import Naive  # noqa: E402
from tests.benchmarks.peers import ExpandedCache  # noqa: E402
from tests.benchmarks.shape import Bench, Shape, build  # noqa: E402
from tests.benchmarks.timing import Run, parser_of, read, save, say, table  # noqa: E402
from tests.measured_memory import PrivateMemory  # noqa: E402

MIB = 2**20
ALLOWED_GROWTH = 0.1
COUNTS = (64, 512, 4096)


def engine_of(batch_size: int | None) -> Callable[[Bench], Run]:
    def made(bench: Bench) -> Run:
        options = {"metric": as_metric("logit"), "baseline": "knockout"}
        return PrefixRuns(bench.model, bench.inputs, batch_size=batch_size, **options)

    return made


WAYS: dict[str, Callable[[Bench], Run]] = {
    "engine, batch as chosen": engine_of(None),
    "engine, 16 at a time": engine_of(16),
    "naive Hugging Face, 1 at a time": Naive,
    "Hugging Face, expanded cache, sdpa, 16 at a time": lambda bench: ExpandedCache(bench, 16),
}


def rows_wanted(quick: bool) -> list[tuple[str, int]]:
    chosen, sixteen, naive, cache = WAYS
    counts = COUNTS[:-1] if quick else COUNTS
    return [*((chosen, n) for n in counts), (sixteen, 64), (naive, 4), (cache, 64)]


def measure(way: str, n_masks: int) -> dict[str, Any]:
    """What the process does: private bytes above the loaded model."""
    shape = Shape()
    bench = build(shape)
    masks = bench.masks(n_masks)
    if way == "Hugging Face, expanded cache, sdpa, 16 at a time":
        run = WAYS[way](bench)  # a decoder of its own belongs to the model
        with PrivateMemory() as memory:
            values = run(masks)
    else:
        with PrivateMemory() as memory:
            values = WAYS[way](bench)(masks)
    held = masks.nbytes + values.nbytes
    return {"peak": memory.peak, "masks_and_values": held, "finite": bool(torch.isfinite(values).all())}


def in_a_process(way: str, n_masks: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", way, str(n_masks), "--threads", str(threads)]
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}, {n_masks} masks:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def options_of() -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=1, quick_rounds=1)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "MASKS"), help="measure one way in this process")
    return read(parser)


def main() -> int:
    options = options_of()
    if options.one:
        way, n_masks = options.one
        say(json.dumps(measure(way, int(n_masks))))
        return 0
    rows = []
    for way, n_masks in rows_wanted(options.quick):
        found = [in_a_process(way, n_masks, torch.get_num_threads()) for _ in range(options.rounds)]
        peak = statistics.median(one["peak"] for one in found)
        rows.append({"way": way, "n_masks": n_masks, "peak": peak, "held": found[0]["masks_and_values"]})
    save("bench_mask_memory", {"rows": rows, "rounds": options.rounds})
    cells = [
        [row["way"], f"{row['n_masks']:,}", f"{row['peak'] / MIB:.0f} MiB", f"{row['held'] / MIB:.2f} MiB"]
        for row in rows
    ]
    say(table(("way", "masks", "peak above the model", "of it masks and values"), cells))
    engine = [row["peak"] for row in rows if row["way"] == next(iter(WAYS))]
    growth = engine[-1] / engine[0] - 1
    good = growth <= ALLOWED_GROWTH
    say(f"{'met   ' if good else 'MISSED'} growth {growth:+.1%}, at most {ALLOWED_GROWTH:.0%}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
