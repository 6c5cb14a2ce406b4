"""Actors killed while they work: the sweep ends, and its files are those of one process."""

from pathlib import Path

import pytest

from tests.sweeps.conftest import RunWithRay
from tests.tiny import tiny_llava, tiny_processor

KILLED = """
import os, sys, torch
from pathlib import Path
from mmlens.sweeps import RayExecutor, sweep
from tests.sweeps.actor_killer import ActorKiller
from tests.sweeps.build import PATIENCE, prompts, shards

torch.set_num_threads(1)
out, name = Path(sys.argv[1]), sys.argv[2]
given = name, prompts(24), "tests.sweeps.build:patient"
options = {"self_check": False}
sweep(*given, out / "serial", options, progress=False)
os.environ[PATIENCE] = "0.2"  # actors inherit it
with ActorKiller(out / "ray" / "units", kills=3, every=3, seed=0) as killer:
    report = sweep(*given, out / "ray", options, executor=RayExecutor(n_actors=2), progress=False)
assert len(killer.hits) == 3, killer.hits
assert report.computed == 24 and not report.poison, report
assert shards(out / "ray") == shards(out / "serial")
sys.exit(42)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_kills_lose_nothing(run_with_ray: RunWithRay, tmp_path: Path) -> None:
    tiny_llava(seed=1, n_kv=2).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    run = run_with_ray(KILLED, tmp_path, tmp_path / "model")
    assert run.returncode == 42, run.stdout
