import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mmlens.errors import ConfigError
from mmlens.pretrained.checkpoints import read_curve
from mmlens.pretrained.checksums import verify
from mmlens.pretrained.evaluate import ACCURACY
from mmlens.pretrained.train import Settings, Trainer, main, train

TOY = Settings(steps=3, refine=1, batch=4, ranks=1, layers=1, vision_layers=1)


def weights(trainer):
    return [p.detach().clone() for p in trainer.params]


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole = train(TOY, tmp_path / "whole", every=1)
    killed = Trainer(TOY, tmp_path / "killed")
    killed.advance()
    killed.advance()
    killed.save()
    killed.advance()  # lost with the process
    resumed = train(TOY, tmp_path / "killed", every=1)
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert any(not torch.equal(a, b) for a, b in zip(weights(whole), weights(killed), strict=True))

    def told(name):
        return [{k: v for k, v in point.items() if k != "seconds"} for point in read_curve(tmp_path / name)]

    assert told("killed") == told("whole")[2:]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, again = (weights(train(TOY, tmp_path)) for _ in range(2))
    assert all(map(torch.equal, first, again))


def test_a_run_cannot_go_on_with_other_settings(tmp_path):
    Trainer(TOY, tmp_path).save()
    with pytest.raises(ConfigError, match="other_lr"):
        Trainer(replace(TOY, other_lr=1.0), tmp_path)


def test_the_loss_falls(tmp_path):
    train(replace(TOY, steps=30, refine=0, batch=8, warmup=5), tmp_path, every=10)
    points = read_curve(tmp_path)
    assert points[-1]["answer"] < 0.8 * points[0]["answer"]
    assert points[-1]["dense"] < 0.9 * points[0]["dense"]


def test_rates_rise_hold_and_fall():
    settings = Settings(steps=1000, refine=100, warmup=50, decay=0.4)
    steps = (0, 24, 100, 599, 800, 1000, 1050, 1100)
    assert [settings.rate(step) for step in steps] == [0.02, 0.5, 1, 1, 0.5, 0.5, 0.25, 0]


@pytest.mark.parametrize("wrong", [{"batch": 5}, {"steps": 0}, {"ranks": 0}, {"refine": -1}])
def test_impossible_runs_are_refused(wrong):
    with pytest.raises(ConfigError, match="impossible"):
        Settings(**{"ranks": 2, **wrong})


def arguments(tmp_path, name, **more):
    given = {
        "out": tmp_path / "run",
        "folder": tmp_path / name,
        "steps": 2,
        "refine": 0,
        "layers": 1,
        "vision-layers": 1,
    }
    return [word for key, value in {**given, **more}.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_leaves_a_sealed_folder_with_a_card(tmp_path, threads):
    main(arguments(tmp_path, "toy", batch=2, ranks=1, evaluated=4))
    verify(tmp_path / "toy")
    card = (tmp_path / "toy" / "README.md").read_text()
    assert "# toy: a small LLaVA" in card and "| main | What is the main object? |" in card
    assert {row["n"] for row in json.loads((tmp_path / "toy" / ACCURACY).read_text())} == {4}


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    job = [sys.executable, "-m", "mmlens.pretrained.train"]
    job += arguments(tmp_path, "two", batch=4, ranks=2, evaluated=1)
    subprocess.run(job, check=True, capture_output=True)
    one = train(replace(TOY, steps=2, refine=0), tmp_path / "one")
    both = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    start = Trainer(TOY, tmp_path / "start").model.state_dict()
    apart = sum((both[name] - mine).square().sum() for name, mine in one.model.state_dict().items())
    moved = sum((start[name] - mine).square().sum() for name, mine in one.model.state_dict().items())
    assert apart < 0.1 * moved, "means are taken rank by rank, and ranks ask unequal numbers of questions"
