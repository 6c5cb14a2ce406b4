from dataclasses import replace

import pytest
import torch

from mmlens.analyses import head_attribution
from mmlens.engine import GatedRuns, PlainRuns
from mmlens.errors import AnswerError
from mmlens.metrics import as_metric
from tests.engine.build import tiny_model, tiny_sample


@pytest.mark.parametrize("what", ["answer", "foil"])
def test_answers_outside_the_vocabulary_are_refused_before_anything_is_run(what: str) -> None:
    model = tiny_model()
    inputs = replace(tiny_sample(model), **{f"{what}_ids": torch.tensor([model.cfg.d_vocab])})
    message = (
        f"the {what} of sample 0 is token {model.cfg.d_vocab}, but the vocabulary has {model.cfg.d_vocab}"
    )
    with model.hooks(fwd_hooks=[("hook_embed", _fail)]), pytest.raises(AnswerError, match=message):
        head_attribution(model, inputs, engine="plain", progress=False)
    for runs in (PlainRuns, GatedRuns):
        with pytest.raises(AnswerError, match=message):
            runs(model, inputs, metric=as_metric("logit"))


def test_a_missing_answer_of_a_later_sample_is_found_before_the_first_is_run() -> None:
    model = tiny_model()
    inputs = replace(tiny_sample(model).select([0, 0]), answer_ids=torch.tensor([7, -1]))
    with (
        model.hooks(fwd_hooks=[("hook_embed", _fail)]),
        pytest.raises(AnswerError, match="sample 1 has none"),
    ):
        head_attribution(model, inputs, engine="plain", progress=False)


def _fail(tensor: torch.Tensor, hook: object) -> None:
    raise AssertionError("the model was run")
