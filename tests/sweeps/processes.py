"""Processes under one process, and among them the actors of a sweep that are computing a unit."""

import os
import signal
import time
from pathlib import Path

WORKING = "ray::ModelActor.compute"
"""How Ray names an actor's process while it runs a unit."""


def descendants(pid: int) -> list[int]:
    """Every living process below ``pid``."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for one in new for child in children.get(one, [])]
        found += new
    return found


def command(pid: int) -> str:
    """Command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill_if_working(pid: int) -> bool:
    """Kills an actor in the middle of a unit, and only there: it is stopped first, and looked at."""
    try:
        os.kill(pid, signal.SIGSTOP)
        working = command(pid).startswith(WORKING)
        os.kill(pid, signal.SIGKILL if working else signal.SIGCONT)
    except ProcessLookupError:
        return False
    return working


def with_text(text: str) -> set[int]:
    """Processes whose command line names something."""
    pids = {int(folder.name) for folder in Path("/proc").glob("[0-9]*")} - {os.getpid()}
    return {pid for pid in pids if text in command(pid)}


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    """Those that are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if command(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
