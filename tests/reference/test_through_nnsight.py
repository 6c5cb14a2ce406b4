"""mmlens.reference.through_nnsight: the second oracle agrees with the first and with HookedVLM."""

import pytest
import torch

from mmlens.errors import InterventionError
from mmlens.interventions import Block, HeadMask, Zero
from mmlens.reference.hf import hf_logits, hf_own_logits
from mmlens.reference.parity import explicit_attention
from mmlens.reference.through_nnsight import nnsight_logits

INTERVENTIONS = [
    [],
    [Zero(at="z", layers=1, heads=2)],
    [Zero(at="z", heads=[(0, 1), (2, 3)], pos="image")],
    [Block(src="image", layers=1, heads=1)],
    [Block(src="image"), Zero(at="z", layers=2, heads=0)],
]


@pytest.mark.parametrize("interventions", INTERVENTIONS, ids=range(len(INTERVENTIONS)))
def test_three_ways_to_the_same_logits(model, hf_model, batches, interventions):
    for inputs in batches.values():
        real = inputs.attention_mask.bool()
        first = hf_logits(hf_model, inputs, interventions)[real]
        assert torch.allclose(nnsight_logits(hf_model, inputs, interventions)[real], first, atol=1e-6, rtol=0)
        with explicit_attention(model):
            assert torch.allclose(model.run(inputs, interventions).logits[real], first, atol=1e-6, rtol=0)
        if interventions:
            assert float((first - hf_logits(hf_model, inputs)[real]).abs().max()) > 0.01


def test_the_model_is_left_as_it_was(hf_model, batches):
    def traces():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf_model.modules()]
        return hooks, set(vars(hf_model)), {type(m) for m in hf_model.modules()}

    inputs = batches["padded"]
    before, own = (
        hf_own_logits(hf_model, inputs),
        traces(),
    )  # transformers keeps hooks of its own after a first pass
    nnsight_logits(hf_model, inputs, [Block(src="image")])
    assert traces() == own
    assert torch.equal(hf_own_logits(hf_model, inputs), before)


def test_what_it_does_not_know_is_refused(hf_model, batches):
    for intervention in (
        HeadMask(mask=torch.zeros(3, 4, dtype=torch.bool)),
        Block(src="image", renormalise=False),
    ):
        with pytest.raises(InterventionError, match="nnsight oracle knows"):
            nnsight_logits(hf_model, batches["padded"], [intervention])
