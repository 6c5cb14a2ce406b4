from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses import single_head_ablation
from mmlens.analyses.single_head_ablation import single_head_masks
from mmlens.errors import AnswerError
from mmlens.interventions import HeadMask
from tests.analyses.build import PLANTED, planted_model
from tests.engine.build import prompt


def test_masks_ablate_one_head_each() -> None:
    masks = single_head_masks(2, 3)
    assert masks.shape == (7, 2, 3) and bool(masks[0].all())
    assert ((~masks[1:]).flatten(1) == torch.eye(6, dtype=torch.bool)).all()


@pytest.mark.parametrize("baseline", ["mean_image_tokens", "knockout"])
def test_equals_interventions_by_hand(baseline: Any) -> None:
    model, prompts = planted_model(), [prompt(0), prompt(1)]
    result = single_head_ablation(model, prompts, metric="logit_diff", baseline=baseline, progress=False)
    inputs = model.prepare(prompts)

    def logit_diff(logits: torch.Tensor) -> torch.Tensor:
        ids = torch.stack([inputs.answer_ids, inputs.foil_ids], dim=1)
        chosen = logits[:, -1].gather(1, ids)
        return chosen[:, 0] - chosen[:, 1]

    with torch.no_grad():
        clean = logit_diff(model(inputs))
        for layer, head in np.ndindex(3, 4):
            mask = torch.ones(3, 4, dtype=torch.bool)
            mask[layer, head] = False
            ablated = model.run(inputs, [HeadMask(mask=mask, baseline=baseline)], strict=False).logits
            expected = (clean - logit_diff(ablated)).numpy()
            np.testing.assert_allclose(result.score[:, layer, head], expected, atol=1e-5)
            assert (layer, head) in PLANTED or np.abs(expected).max() < 1e-6
    assert float(np.abs(result.score).max()) > 1e-3
    assert result.data.attrs["method"] == "single-head ablation" and result.data.attrs["unit"] == "logit"


def test_missing_answer_names_the_sample() -> None:
    with pytest.raises(AnswerError, match="sample 0"):
        single_head_ablation(planted_model(), [prompt(0, answer=None, foil=None)], progress=False)
