import itertools
from typing import Any

import numpy as np
import pytest
import torch

from mmlens.analyses import head_attribution
from mmlens.engine import PlainRuns
from mmlens.errors import AnswerError, DesignError, EngineNotExact
from mmlens.metrics import as_metric
from mmlens.result import AttributionResult
from tests.analyses.build import PLANTED, helped_prompts, planted_model
from tests.engine.build import prompt, tiny_model, tiny_sample

QUICK: dict[str, Any] = {"n_masks": 48, "n_heldout": 20, "progress": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def prompts(model: Any) -> list[Any]:
    return helped_prompts(model, 2)


@pytest.fixture(scope="module")
def result(model: Any, prompts: list[Any]) -> AttributionResult:
    return head_attribution(model, prompts, baseline="knockout", **QUICK)


def test_two_planted_heads_get_their_exact_effects(
    model: Any, prompts: list[Any], result: AttributionResult
) -> None:
    """With two heads that matter there are four head sets; theta is each head's mean effect over them."""
    for i in range(2):
        runs = PlainRuns(
            model, model.prepare(prompts).select([i]), metric=as_metric("logit"), baseline="knockout"
        )
        masks = torch.ones(4, 3, 4, dtype=torch.bool)
        for mask, kept in zip(masks, itertools.product([False, True], repeat=2), strict=True):
            for (layer, head), keep in zip(PLANTED, kept, strict=True):
                mask[layer, head] = keep
        none, second, first, both = runs(masks).tolist()
        expected = np.zeros((3, 4))
        expected[PLANTED[0]] = (both - second + first - none) / 2
        expected[PLANTED[1]] = (both - first + second - none) / 2
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(result.theta[i], expected, atol=2e-6)
        assert float(result.data["clean"][i]) == pytest.approx(both, abs=1e-5)
        assert float(result.data["ablated"][i]) == pytest.approx(none, abs=1e-5)


def test_both_engines_and_any_batch_size_give_the_same_theta(model: Any, prompts: list[Any]) -> None:
    options = {**QUICK, "n_masks": 24, "design": "iid"}
    prefix = head_attribution(model, prompts, engine="prefix", **options)
    plain = head_attribution(model, prompts, engine="plain", batch_size=5, **options)
    np.testing.assert_allclose(prefix.theta, plain.theta, atol=1e-5)
    unchecked = head_attribution(model, prompts, engine="prefix", self_check=False, **options)
    assert prefix.data.equals(unchecked.data)
    assert (prefix.info.attn_implementation, plain.info.attn_implementation) == ("prefix", "plain")


def test_the_result_says_what_it_is(model: Any, prompts: list[Any], result: AttributionResult) -> None:
    data = result.data
    assert data["theta"].dims == ("sample", "layer", "head")
    assert data.attrs == {
        "metric": "logit",
        "unit": "logit",
        "baseline": "knockout",
        "estimator": "ols",
        "design": "hadamard, keep 0.5",
    }
    assert data["theta"].attrs["unit"] == "logit"
    assert "removing it hurts" in data["theta"].attrs["sign"]
    assert data["n_masks"].values.tolist() == [48, 48]
    assert data["question"].values.tolist() == ["what colour is this object ?"] * 2
    assert data["answer"].values.tolist() == [one.answer for one in prompts]
    said = model.tokenizer.convert_ids_to_tokens(model(model.prepare(prompts))[:, -1].argmax(-1).tolist())
    assert data["model_answer"].values.tolist() == said
    assert result.info.seed == 0 and result.info.settings["n_heldout"] == 20
    assert len(set(result.info.image_sha256)) == 2


def test_a_fit_is_judged_on_fresh_masks(result: AttributionResult) -> None:
    data = result.data
    assert data["heldout_measured"].shape == (2, 20)
    for i in range(2):
        measured, predicted = data["heldout_measured"][i], data["heldout_predicted"][i]
        pearson = np.corrcoef(measured, predicted)[0, 1]
        assert float(result.heldout_pearson[i]) == pytest.approx(pearson)
        r2 = 1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
        assert float(result.r2[i]) == pytest.approx(float(r2))


def test_intervals_contain_theta_and_follow_confidence(model: Any, prompts: list[Any]) -> None:
    wide = head_attribution(tiny_model(), prompts[:1], confidence=0.99, **QUICK)
    narrow = head_attribution(tiny_model(), prompts[:1], confidence=0.5, **QUICK)
    for one in (wide, narrow):
        assert bool((one.interval.sel(bound="lower") <= one.theta).all())
        assert bool((one.theta <= one.interval.sel(bound="upper")).all())
    widths = [float((one.interval.diff("bound")).mean()) for one in (wide, narrow)]
    assert widths[0] > 2 * widths[1] > 0
    assert "99 %" in wide.interval.attrs["description"]


def test_cells_show_where_supporting_heads_look(
    model: Any, prompts: list[Any], result: AttributionResult
) -> None:
    inputs = model.prepare(prompts)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    for i in range(2):
        expected = np.zeros((4, 4))
        positions = inputs.token_maps[i].images[0].positions
        for layer, head in itertools.product(range(3), range(4)):
            row = cache[f"blocks.{layer}.attn.hook_pattern"][i, head, -1].double().numpy()
            expected += max(0.0, float(result.theta[i, layer, head])) * row[positions]
        np.testing.assert_allclose(result.data["cell_weight"][i], expected, atol=1e-6)
    assert result.data["cell_box"].shape == (2, 4, 4, 4)
    assert result.data["token"][0].values.tolist() == list(inputs.token_maps[0].tokens)


def test_a_seed_repeats_a_run_bit_by_bit_and_samples_are_independent(model: Any, prompts: list[Any]) -> None:
    first, again = (head_attribution(model, prompts, metric="log_prob", **QUICK) for _ in range(2))
    assert first.data.equals(again.data)
    alone = head_attribution(model, prompts[:1], metric="log_prob", **QUICK)
    np.testing.assert_allclose(alone.theta[0], first.theta[0], atol=1e-6)
    assert alone.data.attrs["unit"] == "nat"
    other = head_attribution(model, prompts, metric="log_prob", seed=1, **QUICK)
    assert not np.allclose(other.data["heldout_measured"], first.data["heldout_measured"])


def test_inputs_and_callables_are_accepted(model: Any) -> None:
    inputs = tiny_sample(model)
    found = head_attribution(model, inputs, metric=lambda logits, inputs: logits[:, -1, 7], **QUICK)
    named = head_attribution(model, inputs, metric="logit", **QUICK)
    np.testing.assert_allclose(found.theta, named.theta, atol=1e-6)
    assert found.data.attrs["metric"] == "<lambda>" and found.data.attrs["unit"] == "unknown"


def test_saved_and_loaded(result: AttributionResult, tmp_path: Any) -> None:
    again = AttributionResult.load(result.save(tmp_path / "theta.mmlens"))
    assert again.data.equals(result.data) and again.info == result.info


def test_what_must_fail_names_the_sample(model: Any, prompts: list[Any]) -> None:
    with pytest.raises(AnswerError, match=r"the metric needs the answer of every sample; sample 0 has none"):
        head_attribution(model, [prompt(0, "what is this ?", answer=None, foil=None)], **QUICK)
    with pytest.raises(DesignError, match="multiples of 24 masks, not 50"):
        head_attribution(model, prompts, **{**QUICK, "n_masks": 50, "design": "hadamard"})
    with pytest.raises(DesignError, match=r"sample 0.*ablating heads does not move it"):
        head_attribution(model, prompts, metric=lambda logits, inputs: logits[:, -1, 0] * 0 + 1, **QUICK)
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: None)]),
        pytest.raises(EngineNotExact, match="have hooks"),
    ):
        head_attribution(model, prompts, engine="prefix", **QUICK)
