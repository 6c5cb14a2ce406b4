"""Ray actors compute what one process computes, bit for bit, and outlive units that kill them."""

import sys
from pathlib import Path
from typing import Any

import pytest

from mmlens.errors import ConfigError, SweepError
from mmlens.sweeps import RayExecutor, sweep
from tests.sweeps.build import QUICK, model, prompts
from tests.sweeps.conftest import RunWithRay
from tests.tiny import tiny_llava, tiny_processor

START = """
import os, sys, torch
from pathlib import Path
from mmlens.errors import SweepError
from mmlens.model import HookedVLM
from mmlens.sweeps import RayExecutor, sweep
from tests.engine.build import prompt, tiny_model
from tests.sweeps.build import QUICK, prompts, shards

torch.set_num_threads(1)
out, name = Path(sys.argv[1]), sys.argv[2]
quiet = {"progress": False}
"""

OWN_CLUSTER = (
    START
    + '''
executor = RayExecutor(n_actors=2)


class Watched:
    """Notes where the processes of Ray listen."""

    heard = set()

    def map(self, job, units, model):
        for pair in executor.map(job, units, model):
            self.heard |= listening()
            yield pair


def listening():
    owned = {}
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            command = (fd.parents[1] / "cmdline").read_text()
            if os.environ["RAY_TMPDIR"] in command or "ray::" in command:
                owned[os.readlink(fd)] = command.replace(chr(0), " ")[:60]
        except OSError:
            continue
    rows = [row.split() for file in ("tcp", "tcp6") for row in Path(f"/proc/net/{file}").read_text().splitlines()[1:]]
    return {(row[1].partition(":")[0], owned[f"socket:[{row[9]}]"]) for row in rows
            if row[3] == "0A" and f"socket:[{row[9]}]" in owned}


sweep(name, prompts(5), "head_attribution", out / "serial", QUICK, **quiet)
watched = Watched()
report = sweep(name, prompts(5), "head_attribution", out / "ray", QUICK, executor=watched, **quiet)
loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
assert watched.heard and {address for address, _ in watched.heard} <= loopback, watched.heard
assert report.computed == 5 and not report.poison, report
assert shards(out / "ray") == shards(out / "serial")
import ray

assert not ray.is_initialized()
sys.exit(42)
'''
)

CONNECTED = (
    START
    + """
import ray
from mmlens.cli import main

executor = RayExecutor(n_actors=1, retries=1)
context = ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
assert context.dashboard_url in ("", None), context.dashboard_url

options = {"marker": str(out / "died"), "self_check": False}
killed = sweep(name, prompts(4), "tests.sweeps.build:dies_once", out / "killed", options, executor=executor, **quiet)
assert killed.computed == 4 and not killed.poison and (out / "died").exists(), killed
sweep(name, prompts(4), "tests.sweeps.build:dies_once", out / "lived", options, **quiet)
assert shards(out / "killed") == shards(out / "lived")

asked = [prompt(0), prompt(1, "what is this ?"), prompt(2, answer="zebra"), prompt(3)]
options = {"bad": "what is this ?", "self_check": False}
deadly = sweep(name, asked, "tests.sweeps.build:deadly", out / "deadly", options, executor=executor, **quiet)
assert list(deadly.poison) == [1, 2] and deadly.computed == 2, deadly
assert "did not survive" in deadly.poison[1] and deadly.poison[2].startswith("AnswerError: "), deadly

other = HookedVLM.from_pretrained(name)
with torch.no_grad():
    other.unembed.weight += 1
for wrong in (other, tiny_model()):
    try:
        sweep(wrong, asked, "head_attribution", out / f"wrong{id(wrong)}", QUICK, executor=executor, **quiet)
    except SweepError as error:
        assert "other weights" in str(error) or "could not load" in str(error), error
    else:
        raise AssertionError("actors with other weights went unnoticed")

given = ["single_head_ablation", "--samples", "2", "--option", "self_check=false", "--no-progress"]
for folder, where in (("a", ["--executor", "ray", "--actors", "1"]), ("b", [])):
    sys.argv = ["mmlens", "sweep", given[0], str(out / folder), *given[1:], *where]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
assert len(shards(out / "a")) == 2 and shards(out / "a") == shards(out / "b")
assert ray.is_initialized()
ray.shutdown()
sys.exit(42)
"""
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("script", [OWN_CLUSTER, CONNECTED], ids=["own cluster", "connected"])
def test_ray_equals_serial_and_outlives_dead_actors(
    script: str, run_with_ray: RunWithRay, tmp_path: Path
) -> None:
    tiny_llava(seed=1, n_kv=2).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    run = run_with_ray(script, tmp_path, tmp_path / "model")
    assert run.returncode == 42, run.stdout


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    arguments = (model(), prompts(1), "head_attribution", tmp_path, QUICK)
    with pytest.raises(SweepError, match=r"pip install 'mmlens\[ray\]'"):
        sweep(*arguments, executor=RayExecutor(), progress=False)
    assert sweep(*arguments, progress=False).computed == 1


@pytest.mark.parametrize("wrong", [{"n_actors": 0}, {"num_gpus": -1}, {"num_cpus": -0.5}, {"retries": -1}])
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        RayExecutor(**wrong)
