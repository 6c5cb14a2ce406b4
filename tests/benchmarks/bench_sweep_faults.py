"""A sweep under fire: SIGKILL again and again, then flipped bits and cuts in its files.

    python tests/benchmarks/bench_sweep_faults.py [--units 1000] [--kills 100] [--flips 1000] [--cuts 300]

1. An undisturbed sweep of a tiny model, for comparison.
2. The same sweep in another folder, killed at random moments and started again; then finished.
3. Random bits flipped and files cut short, of every kind of file that a sweep leaves, each followed by a look:
   *noticed* (an error, or quarantine), *harmless* (everything that can be read is as before), or *silent*.

Units, manifest and collected result are what readers read. Nothing reads quarantine, half-written files or the lock:
for these, the look is another run of the sweep, its files and what is collected of them.

Prints how many kills hit, whether the bytes are those of the undisturbed sweep, and a Markdown table of the faults.
Exit status 1 if bytes differ or a fault was silent.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmlens.errors import ResultError, SweepError  # noqa: E402
from mmlens.recipes.markdown import markdown_table  # noqa: E402
from mmlens.result import Result  # noqa: E402
from mmlens.sweeps import SweepFolder, collect, sweep  # noqa: E402
from tests.sweeps.build import model, prompts, shards  # noqa: E402

SHARES = {
    "unit": 0.5,
    "manifest": 0.15,
    "collected": 0.15,
    "quarantine": 0.07,
    "half-written": 0.07,
    "lock": 0.06,
}
"""Kinds of files, and the share of the faults that each gets."""

ANALYSIS, OPTIONS = "tests.sweeps.build:slow", {"seconds": 0.0, "self_check": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("units", 1000), ("kills", 100), ("flips", 1000), ("cuts", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tiny, asked, rng = model(), prompts(given.units), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        quiet, killed = Path(place) / "quiet", Path(place) / "killed"
        first = sweep(tiny, asked, ANALYSIS, quiet, OPTIONS, progress=False)
        print(f"undisturbed: {first.headline()}")
        most = max(2, round(1.6 * given.units / given.kills))  # the last kill finds the sweep about to end
        hits, started = 0, time.perf_counter()
        for _ in range(given.kills):
            arguments = tiny, asked, ANALYSIS, killed, OPTIONS
            hits += killed_once(arguments, int(rng.integers(1, most)), rng.uniform(0, 0.03))
        left = len(list(killed.rglob(".*.tmp")))
        report = sweep(tiny, asked, ANALYSIS, killed, OPTIONS, progress=False)
        same = shards(killed) == shards(quiet)
        print(
            f"{hits} of {given.kills} kills hit a running sweep ({left} half-written files), in "
            f"{time.perf_counter() - started:.0f} s; then {report.headline()}; bytes as undisturbed: {same}"
        )
        looks = Faults(tiny, killed, Path(place) / "small", rng).table(given.flips, given.cuts)
        header = ["file", "flipped bits", "cuts", "noticed", "harmless", "silent"]
        print(markdown_table(header, [[kind, *map(str, row)] for kind, row in looks.items()]))
        sys.exit(0 if same and not any(row[-1] for row in looks.values()) else 1)


def killed_once(arguments: tuple[Any, ...], n_units: int, seconds: float) -> bool:
    """Runs the sweep in a process of its own, and kills it some time after so many new units."""
    units = arguments[3] / "units"
    before = count(units)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=sweep, args=arguments, kwargs={"progress": False})
    child.start()
    while child.is_alive() and count(units) < before + n_units:
        time.sleep(0.002)
    time.sleep(seconds)
    child.kill()
    child.join()
    return child.exitcode == -9


def count(units: Path) -> int:
    return len(list(units.glob("*.mmlens"))) if units.exists() else 0


class Faults:
    """Damages one file at a time, looks what becomes of it, and mends it."""

    def __init__(self, tiny: Any, big: Path, small: Path, rng: np.random.Generator) -> None:
        """Units and manifest are those of ``big``; the other files are looked at by runs of a small sweep."""
        self._rng, self._store, self._manifest = rng, SweepFolder(path=big), SweepFolder(path=big).manifest()
        self._again = lambda: sweep(tiny, prompts(4), ANALYSIS, small, OPTIONS, progress=False)
        self._again()
        self._small, self._collected = small, collect(small)
        self._shards = shards(small)
        self._file = self._collected.save(small.parent / "collected.mmlens")

    def table(self, flips: int, cuts: int) -> dict[str, list[int]]:
        """Flips, cuts, noticed, harmless and silent faults by kind of file."""
        looks = {kind: [0] * 5 for kind in SHARES}
        for cut, n in ((False, flips), (True, cuts)):
            for kind in self._rng.choice(list(SHARES), n, p=list(SHARES.values())):
                looks[kind][int(cut)] += 1
                looks[kind][2 + ("noticed", "harmless", "silent").index(self.look(str(kind), cut))] += 1
        return looks

    def look(self, kind: str, cut: bool) -> str:
        """One fault."""
        address = str(self._rng.choice(self._manifest["units"]))
        content = self._shards[next(iter(self._shards))]
        file, content = {
            "unit": (self._store.file(address), None),
            "manifest": (self._store.path / "manifest.json", None),
            "collected": (self._file, None),
            "quarantine": (self._small / "quarantine" / f"{address}.{'0' * 16}.mmlens", content),
            "half-written": (self._small / "units" / f".{next(iter(self._shards))}.{'0' * 16}.tmp", content),
            "lock": (self._small / ".manifest.lock", b"nothing reads this"),
        }[kind]
        good = file.read_bytes() if content is None else content
        bad, place = bytearray(good), int(self._rng.integers(len(good)))
        bad[place] ^= 1 << int(self._rng.integers(8))
        file.write_bytes(good[:place] if cut else bytes(bad))
        try:
            same = self._as_before(kind, address)
        except (SweepError, ResultError):
            return "noticed"
        finally:
            file.write_bytes(good)
            if content is not None:
                file.unlink()
        return "harmless" if same else "silent"

    def _as_before(self, kind: str, address: str) -> bool:
        """Whether what is read now is what was read before the fault."""
        if kind == "unit":
            if self._store.check(address) == "damaged":
                raise SweepError("in quarantine")
            return False
        if kind == "manifest":
            return self._store.manifest() == self._manifest
        if kind == "collected":
            return Result.load(self._file).data.identical(self._collected.data)
        report = self._again()
        now = collect(self._small)
        return (
            report.found == 4
            and shards(self._small) == self._shards
            and now.data.identical(self._collected.data)
        )


if __name__ == "__main__":
    main()
