from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mmlens.analyses import blocked_accuracy
from mmlens.analyses.blocked_accuracy import wilson_interval
from mmlens.errors import AnswerError, ConfigError, InputError, InterventionDidNothing
from mmlens.interventions import Block, Scale, Zero
from tests.engine.build import prompt, tiny_model


def answered(model: Any, numbers: range, question: str, blocked: bool = False) -> list[Any]:
    """Prompts whose answers are what the model says, clean or with the image blocked."""
    asked = [prompt(i, question, answer=None, foil=None) for i in numbers]
    inputs = model.prepare(asked)
    with torch.no_grad():
        run = model.run(inputs, [Block(src="image", dst="text")] if blocked else [])
    words = model.tokenizer.convert_ids_to_tokens(run.logits[:, -1].argmax(-1).tolist())
    return [prompt(i, question, answer=word, foil=None) for i, word in zip(numbers, words, strict=True)]


def test_counts_what_the_model_says_clean_and_blocked() -> None:
    model = tiny_model()
    families = {
        "clean words": answered(model, range(5), "what is this ?"),
        "blocked words": answered(model, range(3), "what colour is the small object ?", blocked=True),
    }
    result = blocked_accuracy(model, families, dataset="tiny", batch_size=2, progress=False)
    accuracy = result.data["accuracy"]
    assert float(accuracy.sel(family="clean words", condition="clean")) == 1.0
    assert float(accuracy.sel(family="blocked words", condition="blocked")) == 1.0
    assert float(accuracy.sel(family="clean words", condition="blocked")) < 1.0
    both = sum(float(accuracy.sel(family=f, condition="clean")) * len(p) for f, p in families.items()) / 8
    assert float(accuracy.sel(family="all", condition="clean")) == pytest.approx(both)
    assert result.data["n"].values.tolist() == [5, 3, 8]
    assert result.data.attrs["dataset"] == "tiny"


def test_the_majority_rate_is_that_of_each_family() -> None:
    model = tiny_model()
    families = {
        "a": [prompt(i, answer=word, foil=None) for i, word in enumerate(["red", "red", "blue"])],
        "b": [prompt(i, answer=word, foil=None) for i, word in enumerate(["cat", "dog"])],
    }
    majority = blocked_accuracy(model, families, progress=False).data["majority"].values
    np.testing.assert_allclose(majority, [2 / 3, 1 / 2, 3 / 5])


def test_one_family_stands_for_itself() -> None:
    result = blocked_accuracy(tiny_model(), {"only": [prompt(0, foil=None)]}, progress=False)
    assert result.data["family"].values.tolist() == ["only"]


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (7, 10), (10, 10), (433, 500)])
def test_wilson_interval_is_that_of_scipy(hits: int, trials: int) -> None:
    expected = binomtest(hits, trials).proportion_ci(confidence_level=0.95, method="wilson")
    found = wilson_interval(np.array([float(hits)]), np.array([float(trials)]))
    np.testing.assert_allclose(found, [[expected.low, expected.high]], atol=1e-12)


def test_empty_families_and_missing_answers() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="at least one prompt; empty: b"):
        blocked_accuracy(model, {"a": [prompt(0)], "b": []}, progress=False)
    with pytest.raises(InputError, match="cannot be called 'all'"):
        blocked_accuracy(model, {"a": [prompt(0)], "all": [prompt(0)]}, progress=False)
    with pytest.raises(AnswerError, match="the answer of every sample"):
        blocked_accuracy(model, {"a": [prompt(0, answer=None, foil=None)]}, progress=False)


# --- conditions


def test_other_conditions_are_measured_on_the_same_prompts() -> None:
    """What a condition's own runs say is right in it, and the default is one of them."""
    model = tiny_model()
    closed = {k: (Block(src="image", dst="text", layers=range(k)),) for k in (1, 2, 3)}
    asked = [prompt(i, "what is this ?", answer=None, foil=None) for i in range(5)]
    with torch.no_grad():
        logits = model.run(model.prepare(asked), list(closed[1])).logits[:, -1]
    words = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    members = [prompt(i, "what is this ?", answer=word, foil=None) for i, word in enumerate(words)]
    conditions = {f"from {k}": one for k, one in closed.items()}
    conditions |= {"no image": (Zero(at="resid_pre", pos="image", layers=0), Scale(at="z", factor=0.5))}
    result = blocked_accuracy(model, {"x": members}, conditions=conditions, batch_size=2, progress=False)
    assert result.data["condition"].values.tolist() == ["clean", "from 1", "from 2", "from 3", "no image"]
    shares = result.data["accuracy"].sel(family="x")
    assert float(shares.sel(condition="from 1")) == 1.0
    assert float(shares.sel(condition="clean")) < 1.0
    default = blocked_accuracy(model, {"x": members}, progress=False).data["accuracy"].sel(family="x")
    assert float(default.sel(condition="blocked")) == float(shares.sel(condition="from 3"))
    assert float(default.sel(condition="clean")) == float(shares.sel(condition="clean"))


def test_conditions_are_on_record() -> None:
    model, families = tiny_model(), {"x": [prompt(0, foil=None)]}
    conditions = {"low": [Block(src="image", layers=[0])]}
    plain = blocked_accuracy(model, families, conditions=conditions, progress=False)
    assert plain.data.attrs["intervention"].startswith("low: Block(src='image', dst='text', layers=[0]")
    assert plain.info.settings["conditions"] == {"low": [plain.data.attrs["intervention"][5:]]}
    words = blocked_accuracy(model, families, conditions=conditions, intervention="words", progress=False)
    assert words.data.attrs["intervention"] == "words"
    default = blocked_accuracy(model, families, progress=False)
    assert default.data.attrs["intervention"] == "no text token reads any image token, in any layer or head"
    assert list(default.info.settings["conditions"]) == ["blocked"]


def test_conditions_that_cannot_be_measured() -> None:
    model, families = tiny_model(), {"x": [prompt(0, foil=None)]}
    block = [Block(src="image")]
    with pytest.raises(ConfigError, match="at least one intervention; empty: b"):
        blocked_accuracy(model, families, conditions={"a": block, "b": []}, progress=False)
    with pytest.raises(ConfigError, match="empty: all of them"):
        blocked_accuracy(model, families, conditions={}, progress=False)
    with pytest.raises(ConfigError, match="cannot be called 'clean'"):
        blocked_accuracy(model, families, conditions={"clean": block}, progress=False)
    with pytest.raises(InterventionDidNothing):
        same = {"same": [Scale(at="z", factor=1.0)]}
        blocked_accuracy(model, families, conditions=same, progress=False)
