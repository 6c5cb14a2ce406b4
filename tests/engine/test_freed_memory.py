import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from mmlens.engine.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        layer = [torch.zeros(2**20) for _ in range(5)]  # 5 blocks of 4 MiB: 5,120 pages
        del layer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory by other rules"
)
def test_pages_of_freed_blocks_serve_the_next_ones() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 20 * 5 * 1024 / 2
    assert after < 1024
