"""mmlens.reference.probe: random inputs of the promised form."""

import torch

from mmlens.config import ModelConfig
from mmlens.reference.probe import probe_inputs
from tests.tiny import tiny_llava_config

CFG = ModelConfig.from_hf(tiny_llava_config())


def test_prompts_have_padding_images_and_text_after_them():
    inputs = probe_inputs(CFG, n_images=2, n_after=(4, 6))
    assert inputs.batch_size == 2 and [m.n_images for m in inputs.token_maps] == [2, 2]
    assert inputs.attention_mask.sum(1).tolist() == [3 + 16 + 2 + 16 + 4, 3 + 16 + 2 + 16 + 6]
    assert inputs.attention_mask[0, :2].tolist() == [0, 0]
    assert inputs.pixel_values.shape == (4, 3, 20, 20)
    special = torch.tensor([CFG.bos_token_id, *CFG.eos_token_ids])
    assert not bool(torch.isin(inputs.input_ids, special).any())


def test_the_seed_decides():
    one, same, other = (probe_inputs(CFG, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.input_ids, same.input_ids) and torch.equal(one.pixel_values, same.pixel_values)
    assert not torch.equal(one.pixel_values, other.pixel_values)
