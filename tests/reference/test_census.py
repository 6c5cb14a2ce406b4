"""mmlens.reference.census: every hook point of our model is live, and dead ones are found."""

import pytest
import torch
from transformer_lens.hook_points import HookPoint

from mmlens.errors import ReadOnlyHook, UnknownHook
from mmlens.model.hooked_vlm import HookedVLM
from mmlens.reference.census import census, perturbed
from tests.tiny import tiny_llava


def test_every_hook_point_is_live(model, batches):
    report = census(model, batches["two images"])
    assert report.ok, report.summary()
    assert [entry.hook_name for entry in report.entries] == list(model.hook_dict)
    assert all(entry.verdict == "live" and entry.write_effect > 1e-2 for entry in report.entries)
    names = {entry.hook_name for entry in report.entries}
    for stem in ("vision.blocks.0.", "blocks.2."):
        assert {stem + "attn.hook_attn_scores", stem + "attn.hook_pattern", stem + "hook_resid_mid"} <= names
    assert {"projector.hook_in", "projector.hook_out", "hook_image_features", "hook_embed"} <= names


def test_the_model_is_left_without_hooks(model, batches):
    before = model(batches["padded"])
    census(model, batches["padded"], names="hook_embed")
    assert not any(point.has_hooks() for point in model.hook_dict.values())
    assert torch.equal(model(batches["padded"]), before)


@pytest.fixture
def own(hf_model):
    """A model of one's own to break."""
    return HookedVLM.from_hf(hf_model)


def _verdict(model, inputs, name):
    report = census(model, inputs, names=name)
    assert report.ok == (report.entries[0].verdict in ("live", "read-only"))
    return report.entries[0].verdict


def test_a_hook_point_nobody_calls_is_found(own, batches):
    own.blocks[1].hook_forgotten = HookPoint()
    own.setup()
    assert _verdict(own, batches["padded"], "blocks.1.hook_forgotten") == "never fires"


def test_a_hook_point_whose_writes_are_dropped_is_found(own, batches, monkeypatch):
    mlp = own.blocks[1].mlp
    right = mlp.forward

    def reads_but_ignores(x):
        own.blocks[1].mlp.hook_dead(x)
        return right(x)

    mlp.hook_dead = HookPoint()
    own.setup()
    monkeypatch.setattr(mlp, "forward", reads_but_ignores)
    # A write in place reaches the MLP here, but the idiom of returning a tensor does not.
    assert _verdict(own, batches["padded"], "blocks.1.mlp.hook_dead") == "writing does nothing"


class _LosesInPlaceWrites(HookPoint):
    """Notices a returned tensor only if it is another object, as wrappers around foreign modules do."""

    def __call__(self, x):
        shown = x.clone()
        out = super().__call__(shown)
        return x if out is shown else out


def test_a_hook_point_that_loses_writes_in_place_is_found(own, batches):
    own.blocks[1].attn.hook_z = _LosesInPlaceWrites()
    own.setup()
    assert _verdict(own, batches["padded"], "blocks.1.attn.hook_z") == "in-place writes differ"


def test_a_hook_point_that_disturbs_by_being_watched_is_found(own, batches, monkeypatch):
    attn = own.blocks[1].attn
    right = attn._output
    monkeypatch.setattr(attn, "_output", lambda z: right(z * (1.01 if attn.hook_z.has_hooks() else 1.0)))
    assert _verdict(own, batches["padded"], "blocks.1.attn.hook_z") == "watching changes the logits"


class _RefusesWrites(HookPoint):
    def __call__(self, x):
        before = x.clone()
        if not torch.equal(super().__call__(x), before):
            raise ReadOnlyHook("this hook point cannot change the computation")
        return before


def test_a_hook_point_that_refuses_writes_is_read_only(own, batches):
    own.blocks[1].hook_mlp_out = _RefusesWrites()
    own.setup()
    assert _verdict(own, batches["padded"], "blocks.1.hook_mlp_out") == "read-only"


def test_layers_and_names_narrow_it_down(model, batches):
    report = census(model, batches["padded"], names=lambda name: "mlp" not in name, layers=[1])
    layers = {
        entry.hook_name.split("blocks.")[1][0] for entry in report.entries if "blocks." in entry.hook_name
    }
    assert layers == {"1"} and "hook_embed" in {entry.hook_name for entry in report.entries}
    assert len(census(model, batches["padded"], names=["hook_embed", "projector.hook_in"]).entries) == 2
    with pytest.raises(UnknownHook):
        census(model, batches["padded"], names="blocks.0.hook_nothing")


def test_the_report_is_a_table(model, batches):
    report = census(model, batches["padded"], names=["hook_embed", "blocks.0.attn.hook_z"])
    assert "hook_embed" in str(report) and "2 of 2 hook points live" in str(report)
    frame = report.to_pandas()
    assert list(frame["verdict"]) == ["live", "live"] and (frame["write_effect"] > 0.01).all()


def test_writes_change_every_element_but_closed_edges():
    scores = torch.randn(1, 2, 5, 5).masked_fill(
        ~torch.ones(5, 5).tril().bool(), torch.finfo(torch.float32).min
    )
    new = perturbed(scores, "blocks.0.attn.hook_attn_scores", seed=0)
    open_edges = torch.ones(5, 5).tril().bool().expand_as(scores)
    assert torch.equal(new[~open_edges], scores[~open_edges]) and bool((new != scores)[open_edges].all())
    pattern = torch.rand(1, 2, 5, 5)
    assert bool((perturbed(pattern, "blocks.0.attn.hook_pattern", seed=0) > 0).all())
    z = torch.randn(2, 3, 4)
    assert bool((perturbed(z, "blocks.0.attn.hook_z", seed=0) != z).all())


def test_a_model_without_effect_of_the_image_is_found():
    """Zero projector weights: the image cannot matter, and every hook below the projector is dead."""
    hf_model = tiny_llava(0)
    hf_model.model.multi_modal_projector.linear_2.weight.zero_()
    model = HookedVLM.from_hf(hf_model)
    from mmlens.reference.probe import probe_inputs

    below = ("vision.blocks.0.attn.", "projector.", "hook_embed")
    report = census(model, probe_inputs(model.cfg), names=lambda name: name.startswith(below))
    dead = {entry.hook_name for entry in report.failures}
    assert not report.ok and {"projector.hook_in", "vision.blocks.0.attn.hook_z"} <= dead
    assert "projector.hook_out" not in dead
