"""Sweeps: an analysis of many prompts, one unit at a time, in a folder that survives whatever happens.

1. Give every prompt an address: what is computed, of what, with which weights.
2. Open the folder; it belongs to this sweep and no other. A list of prompts may have grown at its end since.
3. Leave out what is there and whole; what is damaged goes to quarantine and is computed again.
4. Run the rest, and write each unit as it finishes. Failures, unreadable images among them, are reported and never
   stored: the next run tries again.

Each sample is analysed alone, and random masks are drawn by its number in the list, so nothing depends on what else
ran, in which order, where, or how often it was killed.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmlens.errors import ConfigError, InputError, SweepError
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.result import Result
from mmlens.sweeps.executor import Executor, SerialExecutor
from mmlens.sweeps.join import join
from mmlens.sweeps.store import SweepFolder
from mmlens.sweeps.unit import Job, Unit


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        folder: where the results are.
        n_units: of this shard.
        found: units that were there and whole.
        computed: units that were run now, with success.
        recomputed: those of them whose file was damaged.
        poison: number of a sample → why it failed.
        seconds: wall-clock time.
    """

    folder: Path
    n_units: int
    found: int
    computed: int
    recomputed: int
    poison: Mapping[int, str]
    seconds: float

    @property
    def done(self) -> int:
        """Units of this shard that are in the folder."""
        return self.found + self.computed

    def headline(self) -> str:
        """The report in one line."""
        failed = (
            f", {len(self.poison)} failed (first: {next(iter(self.poison.values()))})" if self.poison else ""
        )
        return (
            f"{self.done} of {self.n_units} units done: {self.found} found, {self.computed} computed "
            f"({self.recomputed} of them again, damaged){failed}; {self.seconds:.1f} s"
        )


def sweep(
    model: HookedVLM | str,
    prompts: Sequence[Any],
    analysis: str,
    folder: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    *,
    executor: Executor | None = None,
    shard: str = "1/1",
    progress: bool = True,
) -> SweepReport:
    """Analyses each prompt into ``folder``; run it again after any interruption, or with more prompts, and it goes on.

    Args:
        model: the model, or a name for ``HookedVLM.from_pretrained``.
        prompts: one ``Prompt`` per sample, or a tuple of them for an analysis of pairs (clean, corrupt). Those that the
            folder has from earlier runs come first, in the same order; a shorter list runs its part of them.
        analysis: a name of ``mmlens.analyses``, or ``package.module:function``: called with the model, a list of one
            prompt (two lists for pairs) and the options; returns a ``Result`` of one sample.
        folder: of this sweep alone; made if it is not there.
        options: keyword arguments of the analysis; JSON values.
        executor: where units run; None for this process.
        shard: ``i/n``: only every n-th unit from the i-th on, for n processes or machines that share the folder.
        progress: whether to show a bar.

    Returns:
        What was found, computed and what failed, and why.

    Raises:
        ConfigError: an unknown analysis or option, or a malformed shard; before any work.
        DiskFull: no room; everything finished is whole.
        InputError: there are no prompts, or something else than prompts.
        SweepError: the folder belongs to another sweep or cannot be written, or the executor cannot start.
    """
    started = time.perf_counter()
    samples = [_as_sample(one, i) for i, one in enumerate(prompts)]
    if not samples:
        raise InputError("no prompts were given; a sweep needs at least one.")
    first, step = _shard(shard)
    name = model if isinstance(model, str) else model.model_id
    job = Job(analysis=analysis, options=dict(options or {}), model_id=name, fingerprint="")
    job.check_samples(samples)
    loaded = HookedVLM.from_pretrained(model) if isinstance(model, str) else model
    job = replace(job, fingerprint=loaded.weight_fingerprint())
    units, unreadable = _addressed(job, samples)  # 1
    addresses = [units[i].address if i in units else None for i in range(len(samples))]
    store = SweepFolder.open(folder, {**job.described(), "units": addresses})  # 2
    numbers = range(first - 1, len(samples), step)
    mine = list({units[i].address: units[i] for i in numbers if i in units}.values())
    states = {unit.address: store.check(unit.address) for unit in mine}  # 3
    missing = [unit for unit in mine if states[unit.address] != "whole"]
    failed = dict(_run(job, missing, loaded, store, executor or SerialExecutor(), progress))  # 4
    damaged = {unit.number for unit in missing if states[unit.address] == "damaged"}
    poison = failed | {i: reason for i, reason in unreadable.items() if i in numbers}
    return SweepReport(
        folder=store.path,
        n_units=len(mine) + len(poison) - len(failed),
        found=len(mine) - len(missing),
        computed=len(missing) - len(failed),
        recomputed=len(damaged - failed.keys()),
        poison=dict(sorted(poison.items())),
        seconds=time.perf_counter() - started,
    )


def _addressed(job: Job, samples: Sequence[Any]) -> tuple[dict[int, Unit], dict[int, str]]:
    """The units by number; and why a sample has none: what cannot be read has no address."""
    units: dict[int, Unit] = {}
    unreadable: dict[int, str] = {}
    for i, sample in enumerate(samples):
        try:
            units[i] = job.unit(i, sample)
        except InputError as error:
            unreadable[i] = f"{type(error).__name__}: sample {i}: {error}"
    return units, unreadable


def _run(
    job: Job,
    units: Sequence[Unit],
    model: HookedVLM,
    store: SweepFolder,
    executor: Executor,
    progress: bool,
) -> Iterator[tuple[int, str]]:
    """Runs units and writes each as it finishes; yields those that failed, with the reason."""
    if not units:
        return
    with tqdm(total=len(units), desc=job.analysis, unit="unit", disable=not progress) as bar:
        for unit, outcome in executor.map(job, units, model):
            if outcome.shard is None:
                yield unit.number, outcome.reason
            else:
                store.write(unit.address, outcome.shard)
            bar.update()


def _as_sample(given: Any, number: int) -> Prompt | tuple[Prompt, ...]:
    parts = given if isinstance(given, tuple) else (given,)
    if not parts or not all(isinstance(one, Prompt) for one in parts):
        raise InputError(
            f"sample {number} of a sweep must be a Prompt, or a tuple of them; got {type(given).__name__}."
        )
    return given


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    first, step = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= first <= step:
        raise ConfigError(f"shard {text!r} must be i/n with 1 ≤ i ≤ n, as in '2/8'.")
    return first, step


# --- reading back


def results(folder: str | os.PathLike[str]) -> Iterator[tuple[int, Result | None]]:
    """Number and result of every sample of a sweep, one in memory at a time; None where there is none yet.

    Raises:
        SweepError: the folder holds no sweep, or a file in it is damaged.
    """
    for number, (_, result) in enumerate(SweepFolder(path=Path(folder)).results()):
        yield number, result


def collect(folder: str | os.PathLike[str], *, missing: str = "error") -> Result:
    """All samples of a sweep as one result, as the analysis of all prompts returns it.

    Statistics over samples are not there, as no unit could know them: compute them from the joined arrays.

    Args:
        folder: of the sweep.
        missing: ``error``, or ``leave_out`` for a result of the samples that are there, labelled by their numbers.

    Raises:
        ConfigError: ``missing`` is something else.
        SweepError: samples are missing, the folder holds no sweep, a file is damaged, or the results do not join.
    """
    if missing not in ("error", "leave_out"):
        raise ConfigError(f"missing {missing!r} is unknown; known: error, leave_out.")
    found = dict(results(folder))
    absent = [number for number, result in found.items() if result is None]
    present = {number: result for number, result in found.items() if result is not None}
    if absent and (missing == "error" or not present):
        raise SweepError(
            f"{len(absent)} of {len(found)} samples are not in {folder} yet, the first is sample {absent[0]}: run the "
            "sweep again with this folder, or leave them out: missing='leave_out', on the command line --leave-out."
        )
    return join(list(present.values()), [str(number) for number in present])
