"""Ray in a process of its own: one cluster at a time, small, offline, and nothing of it left afterwards."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from tests.architecture import ROOT
from tests.sweeps.processes import descendants, wait_until_gone, with_text

SECONDS = 540
"""Time limit of one script; on an idle machine with two cores it takes a tenth of that."""

SMALL = {
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 * 2**20),
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def run_script(code: str, *arguments: str | Path, lock: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python code that uses Ray. When this returns or raises, every process that it started is gone.

    Args:
        code: read as by ``python -c``.
        arguments: of the code, as ``sys.argv[1:]``.
        lock: a file that all test processes share; who holds it has the machine's only cluster.

    Raises:
        AssertionError: a process of the cluster outlived the script.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    call = [sys.executable, "-c", code, *map(str, arguments)]
    with (
        FileLock(lock, timeout=2 * SECONDS),
        tempfile.TemporaryDirectory(prefix="mmlens-ray-", ignore_cleanup_errors=True) as place,
    ):
        own = {"PYTHONPATH": path, "RAY_TMPDIR": place, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        env = {**os.environ, **SMALL, **own}  # with a token of its own, Ray writes none into the home folder
        output = Path(place) / "output"  # a file: a pipe stays open as long as any process that has it
        with output.open("w") as file:
            running = subprocess.Popen(call, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
        started: set[int] = set()
        try:
            with suppress(subprocess.TimeoutExpired):
                running.wait(SECONDS)
        finally:
            if running.poll() is None:
                started = {running.pid, *descendants(running.pid)}
                _kill(started)
                running.wait()
            left = wait_until_gone(started | with_text(place), 30)
            _kill(left)
        assert not left, f"outlived the script: {left}"
        return subprocess.CompletedProcess(call, running.returncode, output.read_text(errors="replace"))


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
