import pytest
import torch

from mmlens.engine import masked_runs, open_runs
from mmlens.errors import ConfigError, EngineNotExact
from mmlens.metrics import as_metric
from tests.engine.build import prompt, random_masks, rng, tiny_model, tiny_sample


def opened(engine: str = "auto", **options: object) -> object:
    model = tiny_model()
    return open_runs(
        model, tiny_sample(model), metric=as_metric("logit"), engine=engine, generator=rng(), **options
    )


def test_takes_the_prefix_engine_where_it_can() -> None:
    assert opened().engine == "prefix"
    assert opened("prefix").engine == "prefix"
    assert opened("plain").engine == "plain"


def test_both_engines_answer_alike() -> None:
    masks = random_masks(5)
    torch.testing.assert_close(opened("prefix")(masks), opened("plain")(masks), atol=1e-5, rtol=0)


def test_falls_back_to_the_plain_path_only_when_left_to_choose() -> None:
    model = tiny_model()
    inputs, options = tiny_sample(model), {"metric": as_metric("logit"), "generator": rng()}
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0.5 * z)]):
        assert open_runs(model, inputs, **options).engine == "plain"
        with pytest.raises(EngineNotExact, match="engine='plain'"):
            open_runs(model, inputs, engine="prefix", **options)


def test_drops_the_padding_of_a_batch() -> None:
    model = tiny_model()
    batch = model.prepare([prompt(0, "what is this ?"), prompt(1, "what colour is the small object ?")])
    runs = open_runs(model, batch.select([0]), metric=as_metric("logit"), engine="prefix", generator=rng())
    assert bool(runs.inputs.attention_mask.all())


@pytest.mark.parametrize("engine", ["auto", "prefix"])
def test_a_failed_self_check_is_never_passed_over(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = masked_runs.shared_prefix_attention
    monkeypatch.setattr(
        masked_runs, "shared_prefix_attention", lambda *args, keep, **rest: true(*args, keep=~keep, **rest)
    )
    with pytest.raises(EngineNotExact, match="differ by"):
        opened(engine)
    opened(engine, self_check=False)


@pytest.mark.usefixtures("unchecked")
def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="'fast' is unknown; known: auto, prefix, plain"):
        opened("fast")
