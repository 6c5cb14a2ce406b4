"""Sweeps on Ray actors: killed while they work, and how they scale.

    python tests/benchmarks/bench_ray.py kills [--kills 20] [--units 120] [--actors 2]
    python tests/benchmarks/bench_ray.py scaling [--actors 4] [--units 32] [--masks 512] [--model scenes]

``kills``: sweeps of a tiny model, each after the other in a folder of its own, until that many actors have been ended
by SIGKILL in the middle of a unit, at random moments. Every file is held against those of a sweep in one process, which
has as many threads. Exit status 1 if one byte differs, a unit is missing or failed, or fewer kills hit.

``scaling``: head attribution of the same prompts in this process and on 1, 2, 4, … actors with one thread each.
Start-up ends where the first unit begins, and units per second are counted from there to the last one's end. Exit
status 1 if the files differ.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

from mmlens.datasets import scenes  # noqa: E402
from mmlens.recipes.markdown import markdown_table  # noqa: E402
from mmlens.sweeps import Executor, RayExecutor, SerialExecutor, sweep  # noqa: E402
from tests.sweeps.actor_killer import ActorKiller  # noqa: E402
from tests.sweeps.build import PATIENCE, prompts, shards  # noqa: E402
from tests.tiny import tiny_llava, tiny_processor  # noqa: E402

ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb, defaults in (
        (under_kills, {"kills": 20, "units": 120, "actors": 2}),
        (scaling, {"actors": 4, "units": 32, "masks": 512, "model": "scenes"}),
    ):
        one = verbs.add_parser({"under_kills": "kills"}.get(verb.__name__, verb.__name__))
        one.set_defaults(verb=verb)
        for name, value in defaults.items():
            one.add_argument(f"--{name}", type=type(value), default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        sys.exit(0 if given.pop("verb")(Path(place), **given) else 1)


# --- kills


def under_kills(place: Path, *, kills: int, units: int, actors: int) -> bool:
    """Whether nothing was lost."""
    analysis, options, name = "tests.sweeps.build:patient", {"self_check": False}, str(place / "model")
    tiny_llava(seed=1, n_kv=2).save_pretrained(name)
    tiny_processor().save_pretrained(name)
    asked = prompts(units)
    sweep(name, asked, analysis, place / "serial", options, progress=False)
    expected = shards(place / "serial")
    os.environ[PATIENCE] = "0.1"  # actors inherit it
    hits = missed = rounds = failed = 0
    identical, started = True, time.perf_counter()
    while hits < kills and rounds < ROUNDS:
        folder = place / f"ray-{rounds}"
        every = max(1, units // (kills + 1))
        with ActorKiller(folder / "units", kills=kills - hits, every=every, seed=rounds) as killer:
            report = sweep(
                name, asked, analysis, folder, options, executor=RayExecutor(n_actors=actors), progress=False
            )
        print(f"round {rounds + 1}: {len(killer.hits)} kills; {report.headline()}", flush=True)
        identical &= shards(folder) == expected
        hits, missed, rounds, failed = (
            hits + len(killer.hits), missed + killer.missed, rounds + 1, failed + len(report.poison)
        )  # fmt: skip
    print(
        f"{hits} kills hit an actor at work ({missed} more had just finished and were left alone), in {rounds} sweeps "
        f"of {units} units on {actors} actors and {time.perf_counter() - started:.0f} s; failed units: {failed}; files "
        f"as of one process, byte for byte: {identical}"
    )
    return identical and hits == kills and not failed


# --- scaling


@dataclass
class Clock:
    """An executor that notes when units begin and finish."""

    inner: Executor
    finished: list[float] = field(default_factory=list)
    begun: float = 0.0
    startup: float = 0.0

    def map(self, job: Any, units: Iterable[Any], model: Any) -> Iterator[Any]:
        called = time.perf_counter()
        for unit, outcome in self.inner.map(job, units, model):
            self.finished.append(time.perf_counter())
            if len(self.finished) == 1:
                self.begun = self.finished[0] - outcome.seconds
                self.startup = self.begun - called
            yield unit, outcome

    @property
    def rate(self) -> float:
        """Units per second, from the beginning of the first to the end of the last."""
        return len(self.finished) / (self.finished[-1] - self.begun)


def scaling(place: Path, *, actors: int, units: int, masks: int, model: str) -> bool:
    """Whether all files are equal."""
    if units < 2 * actors:
        sys.exit(f"{units} units are too few for {actors} actors: give at least {2 * actors}.")
    asked = scenes.prompts("heldout", units, family="main")
    options = {"n_masks": masks, "seed": 0}
    counts = sorted({*(2**i for i in range(actors.bit_length()) if 2**i <= actors), actors})
    clocks = {"this process": Clock(SerialExecutor())}
    clocks |= {f"{n} actor{'s' * (n > 1)}": Clock(RayExecutor(n_actors=n)) for n in counts}
    for name, clock in clocks.items():
        sweep(model, asked, "head_attribution", place / name, options, executor=clock, progress=False)
        print(f"{name}: done", file=sys.stderr, flush=True)
    serial = clocks["this process"].rate
    rows = [
        [name, f"{clock.startup:.1f}", f"{clock.rate:.2f}", f"{clock.rate / serial:.2f}"]
        for name, clock in clocks.items()
    ]
    print(markdown_table(["units run in", "start-up, s", "units per s", "times one process"], rows))
    identical = all(shards(place / name) == shards(place / "this process") for name in clocks)
    print(
        f"\n{model}: head attribution with {masks} masks, {units} prompts, {os.cpu_count()} cores, one thread each; "
        f"files byte for byte equal: {identical}"
    )
    return identical


if __name__ == "__main__":
    main()
