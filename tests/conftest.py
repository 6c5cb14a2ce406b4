"""Fixtures of all tests, and the surroundings they run in: offline, seeded, one thread.

Nothing here may import mmlens at module level: pytest loads this file before jaxtyping's import hook is in
place, and a room imported too early would run without its shape checks.
"""

import os

# Before anything imports torch, transformers or wandb.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipaddress
import random
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("mmlens", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("mmlens")


class NetworkUsed(BaseException):
    """A test reached for the network. No ``Exception``, so that no fallback in a library swallows it."""


def _is_local(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise NetworkUsed(f"{event} to {address}: tests run offline")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and not _is_local(args[0]):
        raise NetworkUsed(f"{event} of {args[0]!r}: tests run offline")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> None:
    """Only loopback can be reached, by any library, from any thread, until the process ends."""
    sys.addaudithook(_refuse_network)  # cannot be removed, nor need it be


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global random state is the same at the start of every test, whatever ran before it in this process."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture
def seed() -> int:
    """The seed to hand to code that asks for one."""
    return 20


@pytest.fixture
def generator(seed: int) -> Any:
    """A ``torch.Generator`` on the CPU, freshly seeded."""
    import torch

    return torch.Generator().manual_seed(seed)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one, for code that writes to relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
