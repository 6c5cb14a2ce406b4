from typing import Any

import pytest
import torch

from mmlens.engine import GatedRuns, gated_attention, gated_runs
from mmlens.engine.gate_check import check_gates_against_plain
from mmlens.engine.open_gates import open_gates
from mmlens.errors import ConfigError, EngineNotExact, NonFiniteError
from mmlens.metrics import as_metric
from mmlens.model import HookedVLM
from tests.engine.build import prompt, rng, tiny_model, tiny_sample, with_answers
from tests.zoo import VARIANTS


def opened(engine: str = "auto", model: Any = None, inputs: Any = None, **options: Any) -> Any:
    model = tiny_model(n_kv=2) if model is None else model
    inputs = tiny_sample(model) if inputs is None else inputs
    options = {"metric": as_metric("logit"), "generator": rng()} | options
    return open_gates(model, inputs, engine=engine, **options)


def test_takes_the_prefix_engine_where_it_can() -> None:
    assert opened().engine == "prefix"
    assert opened("prefix").engine == "prefix"
    assert opened("plain").engine == "plain"


def test_falls_back_to_whole_runs_only_when_left_to_choose() -> None:
    model = HookedVLM.from_hf(VARIANTS["paligemma"].model(seed=1))
    inputs = with_answers(model.prepare(VARIANTS["paligemma"].batch(n_after=(5,))))
    assert opened(model=model, inputs=inputs).engine == "plain"
    with pytest.raises(EngineNotExact, match="prefix-LM"):
        opened("prefix", model=model, inputs=inputs)


def test_hooks_of_the_user_run_on_the_plain_path() -> None:
    model = tiny_model()
    gates = torch.full((1, 3, 4), 0.5)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: 0.5 * x)]):
        runs = opened(model=model)
        assert runs.engine == "plain"
        hooked = runs(gates)
    assert not torch.allclose(hooked, opened("plain", model=model)(gates))


def test_drops_the_padding_of_a_batch() -> None:
    model = tiny_model()
    batch = model.prepare([prompt(0, "what is this ?"), prompt(1, "what colour is the small object ?")])
    assert not bool(batch.attention_mask.all())
    runs = opened("prefix", model=model, inputs=batch.select([0]))
    assert bool(runs.inputs.attention_mask.all())


@pytest.mark.parametrize("baseline", ["knockout", "zero", "mean_image_tokens"])
def test_the_check_passes_where_the_engine_is_exact(baseline: Any) -> None:
    assert check_gates_against_plain(opened("prefix", baseline=baseline), generator=rng()) < 1e-5


@pytest.mark.parametrize("engine", ["auto", "prefix"])
def test_wrong_values_are_never_passed_over(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = gated_runs.gated_attention
    monkeypatch.setattr(
        gated_runs, "gated_attention", lambda q, k, v, gates, **rest: true(q, k, v, 1 - gates, **rest)
    )
    with pytest.raises(EngineNotExact, match=r"differ by .*allowed 0.0001.*engine='plain'"):
        opened(engine)
    opened(engine, self_check=False)


def test_wrong_slopes_are_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are right, but nothing flows back through what the suffix reads of itself."""
    true = gated_attention._ends
    monkeypatch.setattr(gated_attention, "_ends", lambda q, k, v, *rest: true(q, k.detach(), v, *rest))
    with pytest.raises(EngineNotExact, match="differ by"):
        opened("prefix")


def test_notices_weights_that_changed_after_the_prefix_was_kept() -> None:
    runs = opened("prefix")
    assert isinstance(runs, GatedRuns)
    with torch.no_grad():
        runs.model.blocks[0].attn.v_proj.weight.mul_(1.5)
    with pytest.raises(EngineNotExact, match="one random point"):
        check_gates_against_plain(runs, generator=rng())


def test_a_metric_that_is_not_finite_is_named_so() -> None:
    with pytest.raises(NonFiniteError, match="is nan"):
        opened(metric=as_metric(lambda logits, inputs: logits[:, -1, 0] * torch.nan))


@pytest.mark.usefixtures("unchecked")
def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="'fast' is unknown; known: auto, prefix, plain"):
        opened("fast")
