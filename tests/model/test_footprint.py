"""Memory estimates against what a run really keeps."""

import torch

from mmlens.config import ModelConfig
from mmlens.model import HookedVLM
from mmlens.model.describe import describe
from mmlens.model.footprint import footprint
from tests.model.conftest import Pair


def test_full_cache_estimate(pair: Pair) -> None:
    inputs = pair.inputs.select([0])
    _, cache = pair.model.run_with_cache(
        inputs, names_filter=lambda n: n.startswith("blocks.") and "result" not in n
    )
    kept = sum(tensor.nbytes for tensor in cache.values())
    sizes = footprint(
        pair.model.cfg, dict(pair.model.named_parameters()), n_pos=inputs.n_pos, dtype=torch.float32
    )
    assert sizes.full_cache == kept
    assert sizes.z == sum(cache["z", layer].nbytes for layer in range(3))
    patterns = sum(cache[name, layer].nbytes for layer in range(3) for name in ("pattern", "attn_scores"))
    assert sizes.patterns == patterns
    assert sizes.kv_cache == sum(cache[name, layer].nbytes for layer in range(3) for name in ("k", "v"))


def test_slices_and_results(pair: Pair) -> None:
    inputs = pair.inputs.select([0])
    names = lambda n: n.startswith("blocks.") and "result" not in n  # noqa: E731
    _, cache = pair.model.run_with_cache(inputs, names_filter=names, pos="final")
    sizes = footprint(
        pair.model.cfg, dict(pair.model.named_parameters()), n_pos=inputs.n_pos, dtype=torch.float32
    )
    assert sizes.final_rows == sum(tensor.nbytes for tensor in cache.values())
    _, results = pair.model.run_with_cache(
        inputs, names_filter=lambda n: n.endswith("hook_result") and n[0] == "b"
    )
    assert sizes.head_results == sum(tensor.nbytes for tensor in results.values())
    assert sizes.weights == sum(p.nbytes for p in pair.model.parameters())


def test_llava_1_5_7b_from_its_configuration_alone() -> None:
    """Against the sizes of the real model: 6.7 B decoder parameters, 772 MiB a float32 layer, 310 MiB of cache."""
    from transformers import LlavaConfig

    with torch.device("meta"):
        model = HookedVLM(ModelConfig.from_hf(LlavaConfig())).to(torch.bfloat16)
    sizes = footprint(model.cfg, dict(model.named_parameters()), n_pos=620, dtype=torch.bfloat16)
    assert 6.9e9 < sizes.n_parameters < 7.1e9
    assert round(2 * sizes.largest_layer / 2**20) == 772
    assert round(sizes.kv_cache / 2**20) == 310
    assert "24 x 24 = 576 per image" in describe(model, n_pos=620)
