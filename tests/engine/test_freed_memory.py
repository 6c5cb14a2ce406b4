"""What the C library does with freed blocks, by its own account: page faults are not counted everywhere."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, torch
from mmlens.engine.freed_memory import keep_freed_memory

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()

class Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in NAMES]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Account

def kept(n_blocks, mebibytes):
    # Bytes that stay with the process after blocks are freed, and the blocks that were mapped one by one.
    before = mallinfo()
    blocks = [torch.empty(mebibytes * 2**20, dtype=torch.uint8) for _ in range(n_blocks)]
    mapped = mallinfo().hblks - before.hblks
    del blocks
    return mapped, mallinfo().arena - before.arena

if sys.argv[1] == "keep":
    keep_freed_memory()
print(*kept(2, 31))
"""


only_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory by other rules"
)


def blocks_and_bytes(way: str, **settings: str) -> tuple[int, int]:
    """Of a process of its own, where no other setting of the allocator from outside holds."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    clean |= settings
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], env=clean, capture_output=True, text=True, check=True
    )
    mapped, kept = map(int, done.stdout.split())
    return mapped, kept


@only_glibc
def test_freed_blocks_stay_with_the_process() -> None:
    assert blocks_and_bytes("leave") == (2, 0)
    mapped, kept = blocks_and_bytes("keep")
    assert mapped == 0
    assert kept >= 62 * 2**20


@only_glibc
@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_environment_go_before(settings: dict[str, str]) -> None:
    assert blocks_and_bytes("keep", **settings) == (2, 0)
