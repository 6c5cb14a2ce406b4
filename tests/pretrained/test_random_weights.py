import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmlens.pretrained.architecture import build_model, save_folder
from mmlens.pretrained.checksums import verify
from mmlens.pretrained.random_weights import main, randomise


@pytest.fixture
def model():
    return build_model(0, layers=1, vision_layers=1)


def test_matrices_are_drawn_anew_at_their_scale_and_vectors_stay(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    randomise(model, seed=1)
    for name, p in ((name, p.detach()) for name, p in model.named_parameters()):
        old = before[name]
        if p.ndim == 1:
            assert torch.equal(p, old), name
        else:
            assert not old.any() or not torch.equal(p, old), name
            assert float(p.std()) == pytest.approx(float(old.std()), rel=0.1), name


def test_a_seed_decides_the_draw(model):
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(99)
        twin = build_model(0, layers=1, vision_layers=1)
        randomise(twin, seed=seed)
        found.append(twin.lm_head.weight.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_command_writes_a_sealed_folder_that_loads(model, tmp_path):
    base, folder = tmp_path / "scenes", tmp_path / "scenes-random"
    save_folder(model, base)
    main(["--base", str(base), "--folder", str(folder), "--evaluated", "4"])
    verify(folder)
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert not torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert "control" in (folder / "README.md").read_text()
