"""A tiny Hugging Face model, ours made from it, and random inputs with padding and with two images."""

import pytest
import torch

from tests.tiny import tiny_llava


@pytest.fixture(scope="module")
def n_kv():
    """Key-value heads of the tiny model (4 query heads); test files that need all three kinds override it."""
    return 2


@pytest.fixture(scope="module")
def hf_model(n_kv):
    return tiny_llava(seed=n_kv, n_kv=n_kv)


@pytest.fixture(scope="module")
def model(hf_model):
    from mmlens.model.hooked_vlm import HookedVLM

    return HookedVLM.from_hf(hf_model)


@pytest.fixture(scope="module")
def wide(hf_model):
    """Both models in float64, where a difference cannot hide behind rounding."""
    from mmlens.model.hooked_vlm import HookedVLM
    from mmlens.reference.parity import float64_copy

    copy = float64_copy(hf_model)
    return HookedVLM.from_hf(copy), copy


@pytest.fixture(scope="module")
def batches(model):
    """Two batches: prompts of unequal length, and prompts with two images each."""
    from mmlens.reference.probe import probe_inputs

    return {
        "padded": probe_inputs(model.cfg, seed=0),
        "two images": probe_inputs(model.cfg, n_images=2, n_after=(2, 5), seed=1),
    }


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
