"""Keeps memory that is freed and wanted again at once.

The C library of Linux (glibc) gives large blocks back to the system as soon as they are freed, and the system clears
every page of the next one: a tenth or more of a layer's time. It can be told to keep them (``mallopt``): blocks as
large as it allows, and as much in all as a batch of head masks takes. What the environment says about it
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) goes before. Other C libraries take no notice.
"""

import ctypes
import os
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
_LARGEST_BLOCK = 2**25
"""The ceiling that glibc sets: 32 MiB."""
_KEPT = 2**28
"""Free memory at the end of the heap that stays with the process: 256 MiB."""


@cache
def keep_freed_memory() -> None:
    """From now on, freed blocks of up to 32 MiB are used again rather than given back, 256 MiB of them at most."""
    if platform.libc_ver()[0] == "glibc" and not _is_set_from_outside():
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _is_set_from_outside() -> bool:
    named = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    return bool(named) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
