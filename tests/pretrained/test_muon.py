import pytest
import torch

from mmlens.pretrained.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 12), (2, 12, 5)])
def test_singular_values_come_near_one_and_directions_stay(shape, generator):
    x = torch.randn(shape, generator=generator)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = orthogonal(x)
    assert (torch.linalg.svdvals(found) - 1).abs().max() < 0.4
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.97


def test_matrices_of_one_shape_do_not_mix(generator):
    x = torch.randn(4, 6, 6, generator=generator)
    assert torch.allclose(orthogonal(x)[1:2], orthogonal(x[1:2]), atol=1e-5)


def test_a_step_has_the_length_of_the_rate_and_lowers_a_loss(generator):
    weight = torch.nn.Parameter(torch.randn(6, 6, generator=generator))
    target = torch.randn(6, 6, generator=generator)
    optimiser = Muon([weight], lr=0.1)
    losses = []
    for _ in range(120):
        before = weight.detach().clone()
        loss = (weight - target).square().sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        assert torch.linalg.svdvals(weight.detach() - before).max() < 0.1 * 1.4
    assert losses[-1] < 0.1 * losses[0]
