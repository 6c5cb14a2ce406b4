"""mmlens.reference.hf: the oracle against hand-made edits of the model, and against HookedVLM."""

import copy

import pytest
import torch

from mmlens.errors import InterventionError, MissingPixels
from mmlens.interventions import Block, HeadMask, ImageKV, Scale, Zero
from mmlens.reference.hf import hf_continuation_logits, hf_logits, hf_own_logits
from mmlens.reference.interventions import agreement, usual_interventions


@pytest.fixture(scope="module", params=[4, 2, 1], ids=lambda n_kv: f"kv{n_kv}")
def n_kv(request):
    return request.param


def _run(hf_model, inputs, mask):
    return hf_model(
        input_ids=inputs.input_ids,
        attention_mask=mask,
        position_ids=inputs.position_ids,
        pixel_values=inputs.pixel_values,
    ).logits


def _additive(inputs, closed):
    """A float mask per head: causal, padding closed, and the given edges closed."""
    n_pos = inputs.n_pos
    allowed = (
        torch.ones(n_pos, n_pos, dtype=torch.bool).tril() & inputs.attention_mask.bool()[:, None, None, :]
    )
    return torch.zeros(closed.shape).masked_fill(~allowed | closed, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("batch", ["padded", "two images"])
def test_a_block_is_a_four_dimensional_mask(hf_model, batches, batch):
    inputs = batches[batch]
    closed = torch.zeros(inputs.batch_size, 4, inputs.n_pos, inputs.n_pos, dtype=torch.bool)
    closed[:, [1, 3]] = (inputs.mask("text")[:, :, None] & inputs.mask("image")[:, None, :])[:, None]
    by_hand = _run(hf_model, inputs, _additive(inputs, closed))
    real = inputs.attention_mask.bool()
    blocked = hf_logits(hf_model, inputs, Block(src="image", heads=(1, 3)))[real]
    assert torch.equal(blocked, by_hand[real])
    assert float((blocked - hf_own_logits(hf_model, inputs)[real]).abs().max()) > 0.01


def test_knocking_out_every_head_is_a_four_dimensional_mask(hf_model, batches):
    inputs = batches["padded"]
    after_image = inputs.mask("text")  # one image: all text that follows its first token follows its last
    closed = (after_image[:, :, None] & inputs.mask("image")[:, None, :])[:, None].expand(-1, 4, -1, -1)
    by_hand = _run(hf_model, inputs, _additive(inputs, closed))
    none_kept = HeadMask(mask=torch.zeros(3, 4, dtype=torch.bool), baseline="knockout")
    real = inputs.attention_mask.bool()
    assert torch.equal(hf_logits(hf_model, inputs, none_kept)[real], by_hand[real])


def test_zeroing_a_head_is_cutting_its_output_weights(hf_model, batches):
    cut = copy.deepcopy(hf_model)
    cut.model.language_model.layers[1].self_attn.o_proj.weight[:, 2 * 8 : 3 * 8] = 0
    new = torch.tensor([[5, 6, 7], [8, 9, 10]])
    zero = Zero(at="z", layers=1, heads=2)
    for inputs in batches.values():
        real = inputs.attention_mask.bool()
        assert torch.allclose(
            hf_logits(hf_model, inputs, zero)[real], hf_logits(cut, inputs)[real], atol=1e-6
        )
        ours, theirs = (
            hf_continuation_logits(hf_model, inputs, new, zero),
            hf_continuation_logits(cut, inputs, new),
        )
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_cached_decoding_equals_one_pass_over_the_whole_sequence(wide, batches):
    hf_model = wide[1]
    new = torch.tensor([[5, 6, 7], [8, 9, 10]])
    interventions = [Block(src="image", heads=0), Zero(at="z", layers=2, heads=1)]
    for inputs in batches.values():
        inputs = inputs.to(dtype=torch.float64)
        whole = hf_logits(hf_model, inputs.extended(new), interventions)[:, inputs.n_pos - 1 : -1]
        stepwise = hf_continuation_logits(hf_model, inputs, new, interventions)
        assert torch.allclose(stepwise, whole, atol=1e-12, rtol=0)


def test_image_text_baselines_by_hand(hf_model, batches):
    """One layer, one head, one sample: keys and values of the image replaced in a naive loop over queries."""
    inputs = batches["padded"].select([1])
    seen = {}
    attn = hf_model.model.language_model.layers[0].self_attn
    group = attn.num_key_value_groups

    def keep(call):
        from mmlens.reference.attention import plain_attention

        if call.layer == 0:
            seen["call"] = call
        return plain_attention(call)

    from mmlens.reference.attention import attention_replaced

    with attention_replaced(hf_model, keep):
        _run(hf_model, inputs, inputs.attention_mask)
    call, head = seen["call"], 3
    q, k, v = call.q[0, head], call.k[0, head].clone(), call.v[0, head].clone()
    image = inputs.image_mask[0]
    k[image], v[image] = k[image].mean(0), v[image].mean(0)
    last = inputs.n_pos - 1
    weights = torch.softmax(q[last] @ k.T * attn.scaling, dim=0)
    expected = weights @ v  # the last query reads every column: nothing is closed

    outputs = {}
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, head] = False
    handle = attn.o_proj.register_forward_pre_hook(lambda module, args: outputs.update(z=args[0]))
    hf_logits(hf_model, inputs, HeadMask(mask=mask))
    handle.remove()
    found = outputs["z"][0, last].view(4, 8)
    assert torch.allclose(found[head], expected, atol=1e-6)
    shared = ImageKV(
        k=_baseline(call.k[0], image, group), v=_baseline(call.v[0], image, group)
    )  # the same baseline, given explicitly
    real = inputs.attention_mask.bool()
    given = hf_logits(hf_model, inputs, HeadMask(mask=mask, baseline=shared))[real]
    assert torch.allclose(given, hf_logits(hf_model, inputs, HeadMask(mask=mask))[real], atol=1e-6)


def _baseline(tensor, image, group):
    """Means over the image, per key-value head, for all three layers (only the first is used)."""
    return tensor[::group][:, image].mean(1).expand(3, -1, -1).clone()


@pytest.mark.parametrize("name", range(9))
@pytest.mark.parametrize("batch", ["padded", "two images"])
def test_hooked_vlm_agrees_exactly_in_float64(wide, batches, batch, name):
    model, hf_model = wide
    interventions = list(usual_interventions(model.cfg).values())[name]
    inputs = batches[batch].to(dtype=torch.float64)
    found = agreement(model, hf_model, inputs, interventions, tolerance=1e-11)
    assert found.ok, found


@pytest.mark.parametrize("batch", ["padded", "two images"])
def test_hooked_vlm_agrees_in_float32_to_the_bit_where_attention_is_explicit(model, hf_model, batches, batch):
    for interventions in ([Zero(at="z", layers=1, heads=2)], [Block(src="image", layers=1, heads=1)]):
        found = agreement(model, hf_model, batches[batch], interventions)
        assert (
            found.prompt_difference <= 1e-6 and found.decoding_difference <= 3e-6 and found.effect > 0.01
        ), found


def test_the_model_is_left_as_it_was(hf_model, batches):
    inputs = batches["padded"]
    before = hf_own_logits(hf_model, inputs)
    hf_logits(hf_model, inputs, [Zero(at="z"), Block(src="image")])
    assert sum(len(m._forward_pre_hooks) for m in hf_model.modules()) == 0
    assert torch.equal(hf_own_logits(hf_model, inputs), before)


@pytest.mark.parametrize(
    "interventions",
    [
        Zero(at="resid_post"),
        Scale(at="z", factor=2.0),
        [HeadMask(mask=torch.ones(3, 4, dtype=torch.bool))] * 2,
    ],
)
def test_what_the_oracle_does_not_know_is_refused(hf_model, batches, interventions):
    with pytest.raises(InterventionError, match="the Hugging Face oracle knows"):
        hf_logits(hf_model, batches["padded"], interventions)


def test_features_without_pixels_are_refused(model, hf_model, batches):
    from dataclasses import replace

    inputs = replace(model.encode_images(batches["padded"]), pixel_values=None)
    with pytest.raises(MissingPixels, match="needs pixel_values"):
        hf_logits(hf_model, inputs)


def test_an_image_token_outside_the_vocabulary_changes_nothing(hf_model, batches):
    from dataclasses import replace

    inputs = batches["padded"]
    outside = inputs.input_ids.masked_fill(inputs.image_mask, 100)
    moved = replace(inputs, input_ids=outside, image_token_id=100)
    real = inputs.attention_mask.bool()
    assert torch.equal(hf_logits(hf_model, moved)[real], hf_logits(hf_model, inputs)[real])
