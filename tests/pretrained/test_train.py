import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mmlens.datasets.scenes import FAMILIES
from mmlens.errors import ConfigError
from mmlens.pretrained.batches import NEVER
from mmlens.pretrained.checkpoints import read_curve
from mmlens.pretrained.checksums import verify
from mmlens.pretrained.evaluate import ACCURACY
from mmlens.pretrained.objective import ALIGN_WEIGHT
from mmlens.pretrained.train import Settings, Trainer, main, train

TOY = Settings(tower_steps=2, steps=3, align_steps=2, batch=4, ranks=1, layers=1, vision_layers=1)


def weights(trainer):
    return [p.detach().clone() for p in trainer.params]


def curve(folder):
    return [{k: v for k, v in point.items() if k != "seconds"} for point in read_curve(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody killed, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return train(TOY, folder, every=1), folder


@pytest.mark.parametrize("step", [1, 2, 4], ids=["in the tower's part", "between", "in the main part"])
def test_a_killed_run_goes_on_bit_for_bit(step, whole, tmp_path):
    killed = Trainer(TOY, tmp_path)
    for _ in range(step):
        killed.advance()
    killed.save()
    killed.advance()  # lost with the process
    resumed = train(TOY, tmp_path, every=1)
    assert all(map(torch.equal, weights(whole[0]), weights(resumed)))
    assert step == 4 or any(
        not torch.equal(a, b) for a, b in zip(weights(resumed), weights(killed), strict=True)
    )
    assert curve(tmp_path) == curve(whole[1])[step:]


def test_a_finished_run_is_not_trained_again(whole):
    before = curve(whole[1])
    again = train(TOY, whole[1], every=1)
    assert all(map(torch.equal, weights(whole[0]), weights(again))) and curve(whole[1]) == before


def test_a_run_may_go_on_for_longer_but_with_no_other_settings(tmp_path):
    Trainer(TOY, tmp_path).save()
    Trainer(replace(TOY, steps=9), tmp_path)
    for change in ({"other_lr": 1.0}, {"tower_steps": 1}, {"align_steps": 1}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            Trainer(replace(TOY, **change), tmp_path)


def test_the_first_part_moves_the_tower_and_the_readers_only(tmp_path):
    trainer = Trainer(TOY, tmp_path)

    def moved(step):
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        readers = [p.detach().clone() for p in trainer.heads.parameters()]
        while trainer.step < step:
            trainer.advance()
        assert not any(map(torch.equal, readers, trainer.heads.parameters()))
        return {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}

    tower = {name for name, _ in trainer.model.named_parameters() if "vision_tower" in name}
    norm = {name for name in tower if "post_layernorm" in name}
    first = moved(TOY.tower_steps)
    assert first == tower - norm
    rest = {name for name, _ in trainer.model.named_parameters()} - norm
    assert moved(TOY.tower_steps + 1) == rest and trainer.step == 3


def test_the_loss_falls(tmp_path):
    train(replace(TOY, tower_steps=20, steps=30, batch=8, warmup=5), tmp_path, every=10)
    points = {point["step"]: point for point in curve(tmp_path)}
    assert points[20]["dense"] < 0.9 * points[10]["dense"]
    assert points[50]["answer"] < 0.8 * points[30]["answer"]
    for step in (10, 20):
        assert points[step]["answer"] == points[step]["align"] == 0
        assert points[step]["accuracy"] == dict.fromkeys(FAMILIES, 0.0)
    assert max(points[50]["accuracy"].values()) > 0.3


def test_the_curve_leaves_out_questions_about_images_that_are_never_open(tmp_path, monkeypatch):
    trainer = Trainer(replace(TOY, tower_steps=0), tmp_path)
    batch = replace(trainer.packer.batch(0, 4), open_from=torch.tensor([0, NEVER, 3, NEVER]))
    monkeypatch.setattr(trainer.packer, "batch", lambda first, size: batch)
    told = trainer.advance().right
    kept = batch.answer_at[:, 0] % 2 == 0
    assert 0 < kept.sum() < len(kept)
    for i, family in enumerate(FAMILIES):
        assert len(told[family]) == int((kept & (batch.family == i)).sum())


def test_the_alignment_loss_is_left_out_after_its_steps(tmp_path):
    trainer = Trainer(TOY, tmp_path)
    batch = trainer.packer.batch(0, 4)
    totals = {}
    for trainer.step in (2, 3, 4):
        found = trainer._losses(batch)
        totals[trainer.step] = found.total.item()
    assert totals[2] == totals[3] == pytest.approx(totals[4] + ALIGN_WEIGHT * found.align.item(), abs=1e-5)
    assert found.align > 0


def test_rates_rise_hold_and_fall_in_both_parts():
    settings = Settings(tower_steps=300, steps=1000, warmup=50, decay=0.4, tower_share=0.25)
    tower = [settings.rate(step) for step in (0, 24, 49, 180, 240)]
    assert tower == pytest.approx([0.02, 0.5, 1, 1, 0.625])
    assert settings.rate(299) == pytest.approx(0.25, abs=0.01), "the tower's ends at its share"
    found = [settings.rate(300 + step) for step in (0, 24, 100, 599, 800, 1000)]
    assert found == [0.02, 0.5, 1, 1, 0.5, 0]
    assert settings.total == 1300


def test_the_towers_matrices_learn_slowly_after_their_part(tmp_path):
    settings = replace(TOY, warmup=1, decay=0.01, matrix_lr=0.01, other_lr=0.001, tower_share=0.25)
    trainer = Trainer(settings, tmp_path)

    def rates():
        trainer.advance()
        return [group["lr"] for optimiser in trainer.optimisers for group in optimiser.param_groups]

    (tower, rest), _ = (optimiser.param_groups for optimiser in trainer.optimisers)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    assert all("vision_tower" in names[id(p)] for p in tower["params"]) and tower["params"]
    assert not any("vision_tower" in names[id(p)] for p in rest["params"])
    assert rates() == [0.01, 0.01, 0.001]
    trainer.advance()
    assert rates() == [0.0025, 0.01, 0.001]


def test_a_run_may_have_no_tower_part():
    settings = Settings(tower_steps=0, steps=100, warmup=10, decay=0.5)
    assert [settings.rate(step) for step in (0, 9, 75, 100)] == [0.1, 1, 0.5, 0]


@pytest.mark.parametrize("wrong", [{"batch": 5}, {"steps": 0}, {"ranks": 0}, {"tower_steps": -1}])
def test_impossible_runs_are_refused(wrong):
    with pytest.raises(ConfigError, match="impossible"):
        Settings(**{"ranks": 2, **wrong})


def arguments(tmp_path, name, **more):
    given = {
        "out": tmp_path / "run",
        "folder": tmp_path / name,
        "tower-steps": 1,
        "steps": 2,
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
    assert "--tower-steps 1 --steps 2 --seed 0" in card
    rows = json.loads((tmp_path / "toy" / ACCURACY).read_text())
    assert {row["family"]: row["n"] for row in rows} == dict.fromkeys(FAMILIES, 4)


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    job = [sys.executable, "-m", "mmlens.pretrained.train"]
    job += arguments(tmp_path, "two", batch=4, ranks=2, evaluated=1)
    subprocess.run(job, check=True, capture_output=True)
    same = replace(TOY, tower_steps=1, steps=2)
    one = train(same, tmp_path / "one")
    both = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    start = Trainer(same, tmp_path / "start").model.state_dict()
    apart = sum((both[name] - mine).square().sum() for name, mine in one.model.state_dict().items())
    moved = sum((start[name] - mine).square().sum() for name, mine in one.model.state_dict().items())
    assert apart < 0.1 * moved, "means are taken rank by rank, and ranks ask unequal numbers of questions"
