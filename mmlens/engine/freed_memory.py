"""Keeps memory that is freed and wanted again at once.

The C library of Linux (glibc) gives large blocks back to the system as soon as they are freed, and the system clears
every page of the next one: a tenth or more of a layer's time. What counts as large is the size of the largest such
block freed so far, up to 32 MiB (``mallopt``, M_MMAP_THRESHOLD). So one block of nearly that size, taken and given
back, is enough for the whole process. Other allocators take no notice.
"""

import torch

_LARGEST = 2**25 - 2**16
"""A little less than the ceiling, so that it holds with what the allocator adds."""


def keep_freed_memory() -> None:
    """From now on, freed blocks of up to 32 MiB are used again rather than given back."""
    torch.empty(_LARGEST, dtype=torch.uint8, device="cpu")
