"""The random-weight control."""

import torch

from mmlens.model.random_twin import random_twin
from tests.model.conftest import Pair


def test_matrices_are_new_with_the_same_moments(plain_pair: Pair) -> None:
    twin = random_twin(plain_pair.model, seed=1)
    for name, trained in plain_pair.model.named_parameters():
        drawn = twin.get_parameter(name)
        assert drawn.shape == trained.shape and drawn.dtype == trained.dtype
        assert drawn.data_ptr() != trained.data_ptr()
        if trained.ndim > 1:
            assert not torch.equal(drawn, trained)
            assert abs(float(drawn.std() / trained.std()) - 1) < 0.15
        else:
            assert torch.equal(drawn, trained)


def test_it_runs_reproducibly_and_leaves_the_model_alone(plain_pair: Pair) -> None:
    before = plain_pair.model(plain_pair.inputs)
    first, again = random_twin(plain_pair.model, seed=1), random_twin(plain_pair.model, seed=1)
    other = random_twin(plain_pair.model, seed=2)
    assert torch.equal(first(plain_pair.inputs), again(plain_pair.inputs))
    assert not torch.equal(first(plain_pair.inputs), other(plain_pair.inputs))
    assert torch.equal(plain_pair.model(plain_pair.inputs), before)
    assert first.weight_fingerprint() == again.weight_fingerprint() != plain_pair.model.weight_fingerprint()
