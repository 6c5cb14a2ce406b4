"""Ray for the tests that need it, one cluster at a time whatever number of test processes there is."""

from collections.abc import Callable
from functools import partial
from subprocess import CompletedProcess

import pytest

RunWithRay = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run_with_ray(tmp_path_factory: pytest.TempPathFactory) -> RunWithRay:
    """Runs a script that uses Ray in a process of its own; see ``tests.sweeps.ray_process``."""
    pytest.importorskip("ray")
    from tests.sweeps.ray_process import run_script

    return partial(run_script, lock=tmp_path_factory.getbasetemp().parent / "ray.lock")
