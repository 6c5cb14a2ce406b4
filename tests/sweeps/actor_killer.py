"""Kills actors of a sweep while they work: after so many new units, at a random moment, one of those at work."""

import os
import random
import threading
import time
from pathlib import Path
from typing import Self

from tests.sweeps.processes import WORKING, command, descendants, kill_if_working


class ActorKiller:
    """A thread that kills actors below this process, as long as the ``with`` block runs.

    Attributes:
        hits: process ids of the actors that were killed while they computed a unit.
        missed: how often an actor had finished its unit before it could be stopped; it was left alone.
    """

    def __init__(self, units: Path, *, kills: int, every: int, seed: int) -> None:
        """Watches a folder.

        Args:
            units: folder of the sweep's units.
            kills: how many.
            every: units from one to the next, at most.
            seed: of the moments.
        """
        self.hits: list[int] = []
        self.missed = 0
        self._units, self._kills, self._every = units, kills, every
        self._random, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        for _ in range(self._kills):
            target = self._n_units() + self._random.randint(0, self._every)
            while self._n_units() < target and not self._over.is_set():
                time.sleep(0.01)
            time.sleep(self._random.uniform(0, 0.1))
            while not self._over.is_set() and not self._hit():
                time.sleep(0.005)

    def _hit(self) -> bool:
        working = [pid for pid in descendants(os.getpid()) if command(pid).startswith(WORKING)]
        if not working:
            return False
        pid = self._random.choice(working)
        hit = kill_if_working(pid)
        self.hits += [pid] * hit
        self.missed += not hit
        return hit

    def _n_units(self) -> int:
        return len(list(self._units.glob("*.mmlens")))
