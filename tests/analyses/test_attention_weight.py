from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses import attention_weight
from mmlens.errors import ConfigError, InputError
from mmlens.inputs import Prompt
from tests.engine.build import prompt, tiny_model


@pytest.mark.parametrize("reader", ["final", "text"])
def test_equals_the_pattern_summed_by_hand(reader: Any) -> None:
    model = tiny_model(n_kv=2)
    prompts = [prompt(0, "what is this ?"), prompt(1, "what colour is the small object ?")]
    result = attention_weight(model, prompts, reader=reader, progress=False)
    for i, one in enumerate(prompts):
        inputs = model.prepare([one])
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs)
        image = inputs.image_mask[0]
        after = torch.arange(inputs.n_pos) > int(image.nonzero()[-1])
        for layer in range(3):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
            rows = pattern[:, -1:] if reader == "final" else pattern[:, after]
            expected = rows[..., image].sum(-1).mean(-1).numpy()
            np.testing.assert_allclose(result.score[i, layer], expected, atol=1e-6)
    assert float(result.score.min()) > 0.0 and float(result.score.max()) < 1.0
    assert result.data.attrs["unit"] == "1"


def test_no_image_and_unknown_reader() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="no image tokens"):
        attention_weight(model, [Prompt(question="what is this ?")], progress=False)


@pytest.mark.usefixtures("unchecked")
def test_unknown_reader() -> None:
    with pytest.raises(ConfigError, match="'last' is unknown"):
        attention_weight(tiny_model(), [prompt(0)], reader="last", progress=False)  # type: ignore[arg-type]
