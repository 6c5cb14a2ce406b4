import pytest
import torch

from mmlens.engine import PrefixRuns, check_against_plain, masked_runs
from mmlens.errors import EngineNotExact
from mmlens.metrics import as_metric
from tests.engine.build import rng, tiny_model, tiny_sample


def ready(**options: object) -> PrefixRuns:
    model = tiny_model(n_kv=2)
    return PrefixRuns(model, tiny_sample(model), metric=as_metric("logit"), baseline="knockout", **options)


def test_passes_where_the_engine_is_exact() -> None:
    assert check_against_plain(ready(), generator=rng()) < 1e-5


def test_notices_a_wrong_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    true = masked_runs.shared_prefix_attention
    monkeypatch.setattr(
        masked_runs, "shared_prefix_attention", lambda *args, keep, **rest: true(*args, keep=~keep, **rest)
    )
    with pytest.raises(EngineNotExact, match=r"differ by .*allowed 0.0001.*engine='plain'"):
        check_against_plain(ready(), generator=rng())


def test_notices_weights_that_changed_after_the_prefix_was_kept() -> None:
    runs = ready()
    with torch.no_grad():
        runs.model.blocks[0].attn.v_proj.weight.mul_(1.5)
    with pytest.raises(EngineNotExact, match="2 random head masks"):
        check_against_plain(runs, generator=rng())
