"""Attribution by gates: its sum is everything, both engines agree, planted heads are found."""

from typing import Any

import numpy as np
import pytest

from mmlens.analyses import gate_attribution, recovery
from mmlens.analyses.gate_attribution import nodes
from mmlens.engine import GatedRuns, gated_runs
from mmlens.errors import (
    AnswerError,
    ConfigError,
    DesignError,
    EmptyGroup,
    EngineNotExact,
    InterventionError,
    MetricError,
)
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.result import PlantedTruth
from tests.analyses.build import PLANTED, planted_model
from tests.engine.build import prompt, tiny_model, with_answers
from tests.zoo import VARIANTS

ENGINES = ("auto", "prefix", "plain")
QUIET: dict[str, Any] = {"progress": False}


def zoo_sample(name: str) -> tuple[HookedVLM, Any]:
    model = HookedVLM.from_hf(VARIANTS[name].model(seed=1))
    return model, with_answers(model.prepare(VARIANTS[name].batch(n_after=(6, 4))))


def test_the_path_sums_to_everything_and_the_gap_closes() -> None:
    model = tiny_model()
    prompts = [prompt(0), prompt(1, "what is this ?")]
    gaps = []
    for steps in (1, 3, 8):
        result = gate_attribution(model, prompts, steps=steps, batch_size=3, **QUIET)
        sums = result.effect.sum(("layer", "head")) - (result.clean - result.corrupt)
        np.testing.assert_allclose(result.data["gap"], sums, atol=1e-9)
        gaps.append(float(np.abs(sums).max()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4
    assert (
        result.data.attrs["direction"] == "denoise" and result.data.attrs["baseline"] == "mean_image_tokens"
    )


def test_only_planted_heads_have_gates_that_matter() -> None:
    model = planted_model()
    for at in ("path", "kept", "ablated"):
        effect = np.abs(gate_attribution(model, [prompt(0)], at=at, **QUIET).effect.values[0])  # type: ignore[arg-type]
        for layer, head in np.ndindex(3, 4):
            assert effect[layer, head] > 1e-5 if (layer, head) in PLANTED else effect[layer, head] < 1e-7


def test_points_and_weights_integrate_polynomials() -> None:
    points, weights = nodes(3)
    assert weights.sum() == pytest.approx(1) and (points > 0).all() and (points < 1).all()
    assert float(weights @ points**5) == pytest.approx(1 / 6)


# --- engines


@pytest.mark.parametrize("at", ["path", "kept", "ablated"])
@pytest.mark.parametrize("name", ["llava-llama3", "gemma3", "qwen2.5-vl"])
def test_engines_agree(name: str, at: Any) -> None:
    model, inputs = zoo_sample(name)
    options = {"at": at, "steps": 3, "batch_size": 2, **QUIET}
    found = {engine: gate_attribution(model, inputs, engine=engine, **options) for engine in ENGINES}
    for engine, result in found.items():
        assert result.info.attn_implementation == ("plain" if engine == "plain" else "prefix")
        for name in ("effect", "clean", "corrupt"):
            np.testing.assert_allclose(result.data[name], found["plain"].data[name], atol=1e-5)
    assert np.abs(found["plain"].effect.values).max() > 1e-2


def test_whole_runs_where_the_prefix_engine_is_not_exact() -> None:
    model, inputs = zoo_sample("paligemma2")
    result = gate_attribution(model, inputs, steps=2, **QUIET)
    assert result.info.attn_implementation == "plain" and result.info.settings["self_check"]
    with pytest.raises(EngineNotExact, match=r"sample 0.*prefix-LM"):
        gate_attribution(model, inputs, engine="prefix", steps=2, **QUIET)


def test_no_more_points_run_together_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = GatedRuns.run
    monkeypatch.setattr(
        GatedRuns, "run", lambda self, gates: seen.append(len(gates)) or original(self, gates)
    )
    gate_attribution(tiny_model(), [prompt(0)], steps=8, batch_size=3, self_check=False, **QUIET)
    assert seen == [3, 3, 2, 2]  # the path, then both ends


def test_the_first_prompt_is_checked_against_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    true = gated_runs.gated_attention
    monkeypatch.setattr(
        gated_runs, "gated_attention", lambda q, k, v, gates, **rest: true(q, k, v, gates**2, **rest)
    )
    with pytest.raises(EngineNotExact, match=r"sample 0.*differ by"):
        gate_attribution(tiny_model(), [prompt(0)], **QUIET)
    gate_attribution(tiny_model(), [prompt(0)], self_check=False, **QUIET)


def test_weights_that_ask_for_gradients_still_do() -> None:
    model = tiny_model()
    for weight in model.parameters():
        weight.requires_grad_(True)
    gate_attribution(model, [prompt(0)], steps=2, **QUIET)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


# --- what it finds, what it refuses


def test_redundant_heads_are_found_along_the_path_and_missed_at_its_end() -> None:
    """Three heads of which any suffices: with all open the slope of each is nearly 0, along the path it is not."""
    from mmlens.datasets import scenes
    from mmlens.pretrained import path

    model = HookedVLM.from_pretrained("planted-redundant")
    truth = PlantedTruth.load(path("planted-redundant") / "truth.mmlens").first(4)
    prompts = scenes.prompts("heldout", 4, family="colour", seed=33)
    found = {
        at: gate_attribution(model, prompts, at=at, steps=12, batch_size=12, **QUIET).effect  # type: ignore[arg-type]
        for at in ("path", "kept")
    }
    judged = recovery(found, truth, family="colour", n_boot=1).data
    assert float(judged["auroc"].sel({"method": "path"})) == 1
    assert float(judged["correlation"].sel({"method": "path"})) > 0.9
    assert float(judged["correlation"].sel({"method": "kept"})) < 0.5
    assert float(found["path"].sum(("layer", "head")).mean()) > 3 * float(
        found["kept"].sum(("layer", "head")).mean()
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": "middle"}, ConfigError, "path, kept, ablated"),
        ({"steps": 0}, ConfigError, "steps=0"),
        ({"engine": "fast"}, ConfigError, "engine 'fast' is unknown; known: auto, prefix, plain"),
        ({"baseline": "median"}, InterventionError, "median"),
        (
            {"metric": lambda logits, inputs: logits[:, -1].argmax(-1).float()},
            MetricError,
            "not differentiable",
        ),
        ({"metric": lambda logits, inputs: 0 * logits[:, -1, 0]}, DesignError, "sample 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gate_attribution(tiny_model(), [prompt(0)], **QUIET, **options)


def test_prompts_without_answer_or_image() -> None:
    model = tiny_model()
    with pytest.raises(AnswerError, match=r"sample 0"):
        gate_attribution(model, [prompt(0, answer=None, foil=None)], **QUIET)
    with pytest.raises(EmptyGroup, match="no such text"):
        gate_attribution(model, [Prompt(question="what is this ?", answer="red")], **QUIET)
