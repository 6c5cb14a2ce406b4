from dataclasses import replace

import pytest
import torch

from mmlens.errors import ConfigError
from mmlens.pretrained.architecture import build_model, save_folder
from mmlens.pretrained.batches import NEVER, Packer
from mmlens.pretrained.objective import losses
from mmlens.pretrained.plant import Planter, PlantSettings, closed_heads, image_closed, main
from mmlens.pretrained.plantings import PLANTINGS
from mmlens.pretrained.train import train
from mmlens.pretrained.vocabulary import build_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_folder(build_model(0), folder)
    return folder


@pytest.fixture(scope="module")
def toy(base):
    return PlantSettings(name="relay", base=str(base), steps=3, batch=2, warmup=1)


def weights(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def test_the_decoder_learns_tower_and_projector_stay_and_gates_hold(toy, tmp_path):
    planter = Planter(toy, tmp_path)
    before = weights(planter.model)
    planter.advance()
    after = weights(planter.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("language_model" in name or name == "lm_head.weight" for name in changed)
    q_proj = after["model.language_model.layers.0.self_attn.q_proj.weight"].view(8, 12, 96)
    assert (q_proj[:, 11] == 0).all() and ((q_proj[:, 5] != 0).sum(-1) == 1).all()


def test_a_killed_planting_goes_on_as_if_nothing_had_happened(toy, tmp_path):
    whole = train(toy, tmp_path / "whole", make=Planter)
    killed = Planter(toy, tmp_path / "killed")
    for _ in range(2):
        killed.advance()
    killed.save()
    resumed = train(toy, tmp_path / "killed", make=Planter)
    assert resumed.step == whole.step == 3
    one, other = (weights(planter.model) for planter in (whole, resumed))
    gates = {name for name in one if not torch.equal(one[name], other[name])}
    assert all("q_proj" in name or "k_proj" in name for name in gates), (
        "only gate strengths are measured anew"
    )


def test_a_planting_of_another_name_cannot_go_on_in_the_same_folder(toy, tmp_path):
    train(replace(toy, steps=1), tmp_path, make=Planter)
    with pytest.raises(ConfigError, match="name: relay before, spread now"):
        Planter(replace(toy, name="spread"), tmp_path)


def test_a_redundant_planting_closes_carriers_but_never_all_where_the_image_is_open():
    row, options = PLANTINGS["redundant"], {"shape": (6, 8), "seed": 1}
    never = torch.zeros(200, dtype=torch.long)
    never[:20] = NEVER
    batch = replace(Packer(build_tokenizer(), seed=0).batch(0, 200), open_from=never)
    closed = closed_heads(row, batch, **options)
    assert closed[:20].all()
    places = [(head.layer, head.head) for head in row.of("carrier")]
    kept = torch.stack([~closed[20:, layer, head] for layer, head in places], 1).sum(1)
    assert kept.min() == 1 and set(kept.tolist()) == {1, 2, 3}
    rest = closed[20:].clone()
    for layer, head in places:
        rest[:, layer, head] = False
    assert not rest.any()
    assert not closed_heads(PLANTINGS["layer"], batch, **options)[20:].any()


def test_closing_all_heads_is_closing_the_image():
    tokenizer = build_tokenizer()
    model, batch = build_model(1, layers=2, vision_layers=1), Packer(tokenizer, seed=0).batch(0, 3)
    closed = torch.ones(3, 2, 8, dtype=torch.bool)
    with torch.no_grad():
        with image_closed(model.model.language_model.layers, batch, closed):
            shut = losses(model, None, batch, eos=1).answer
        other = replace(batch, pixel_values=batch.pixel_values.flip(0))
        with image_closed(model.model.language_model.layers, other, closed):
            blind = losses(model, None, other, eos=1).answer
        seeing = losses(model, None, batch, eos=1).answer
    assert torch.allclose(shut, blind, atol=1e-5) and not torch.allclose(shut, seeing, atol=1e-4)


def test_the_command_writes_a_folder(base, tmp_path):
    out, folder = tmp_path / "run", tmp_path / "planted-layer"
    main(
        [
            "layer",
            "--out",
            str(out),
            "--folder",
            str(folder),
            "--base",
            str(base),
            "--steps",
            "1",
            "--batch",
            "2",
        ]
    )
    assert (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()
