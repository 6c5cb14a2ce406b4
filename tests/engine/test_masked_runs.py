import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from tqdm import tqdm

from mmlens.engine import PlainRuns, PrefixRuns
from mmlens.errors import (
    AnswerError,
    ConfigError,
    EngineNotExact,
    InterventionError,
    NonFiniteError,
    ShapeError,
)
from mmlens.inputs import Prompt
from mmlens.interventions import HEAD_BASELINES, HeadMask, ImageKV
from mmlens.metrics import METRICS, as_metric
from tests.engine.build import prompt, random_masks, rng, tiny_model, tiny_sample

LOGIT = as_metric("logit")


def all_masks(n: int, n_layers: int = 3, n_heads: int = 4) -> torch.Tensor:
    """Random ones, the two ends, and masks that ablate in one layer or one head only."""
    ones = torch.ones(1, n_layers, n_heads, dtype=torch.bool)
    layers = ones.repeat(n_layers, 1, 1)
    layers[range(n_layers), range(n_layers)] = False
    single = ones.clone()
    single[0, -1, 1] = False
    return torch.cat([random_masks(n, n_layers, n_heads), ones, ~ones, layers, single])


def difference(model: Any, inputs: Any, masks: torch.Tensor, least: float = 0.01, **options: Any) -> float:
    options = {"metric": LOGIT} | options
    plain = PlainRuns(model, inputs, **options)(masks)
    assert float(plain.std()) > least  # head masks matter here at all
    return float((PrefixRuns(model, inputs, **options)(masks) - plain).abs().max())


@pytest.mark.parametrize("baseline", HEAD_BASELINES)
@pytest.mark.parametrize("n_kv", [4, 2, 1])
def test_equals_the_plain_path(n_kv: int, baseline: str) -> None:
    model = tiny_model(n_kv=n_kv)
    assert difference(model, tiny_sample(model), all_masks(12), baseline=baseline) < 1e-5


@pytest.mark.parametrize("n_before", [0, 1, 5])
@pytest.mark.parametrize(("n_after", "n_images"), [(6, 1), (1, 1), (4, 2)])
def test_equals_the_plain_path_for_every_shape_of_prompt(n_before: int, n_after: int, n_images: int) -> None:
    model = tiny_model(n_kv=2)
    inputs = tiny_sample(model, n_before, n_after, n_images)
    for baseline in ("knockout", "mean_image_tokens"):
        assert difference(model, inputs, all_masks(6), baseline=baseline) < 1e-5


@pytest.mark.parametrize("name", list(METRICS))
def test_equals_the_plain_path_for_every_metric(name: str) -> None:
    model = tiny_model()
    options = {"metric": as_metric(name), "baseline": "knockout", "least": 1e-4 if name == "prob" else 0.01}
    assert difference(model, tiny_sample(model), all_masks(6), **options) < 1e-5


def test_equals_the_plain_path_for_given_keys_and_values() -> None:
    model = tiny_model(n_kv=2)
    baseline = ImageKV(k=torch.randn(3, 2, 8, generator=rng(1)), v=torch.randn(3, 2, 8, generator=rng(2)))
    assert difference(model, tiny_sample(model), all_masks(6), baseline=baseline) < 1e-5


def test_float64_shrinks_the_difference_to_its_own_rounding() -> None:
    model = tiny_model(n_kv=2).to(dtype=torch.float64)
    inputs = tiny_sample(model).to(dtype=torch.float64)
    assert difference(model, inputs, all_masks(12), baseline="mean_image_tokens") < 1e-12


def test_half_precision_weights_compute_in_float32_on_a_cpu() -> None:
    model = tiny_model(n_kv=2).to(dtype=torch.bfloat16)
    assert difference(model, tiny_sample(model), all_masks(6), baseline="knockout") < 1e-5


def test_biases_are_honoured() -> None:
    model = tiny_model(bias=True)
    assert difference(model, tiny_sample(model), all_masks(6), baseline="knockout") < 1e-5


def test_encoded_images_change_nothing() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)
    raw, encoded = (
        PrefixRuns(model, one, metric=LOGIT)(all_masks(4)) for one in (inputs, model.encode_images(inputs))
    )
    torch.testing.assert_close(raw, encoded, atol=1e-6, rtol=0)


def test_a_prompt_out_of_a_padded_batch() -> None:
    model = tiny_model()
    short, long = prompt(0, "what is this ?"), prompt(1, "what colour is the small object in this picture ?")
    batch = model.prepare([short, long])
    assert not bool(batch.attention_mask.all())
    alone, selected = model.prepare([short]), batch.select([0])
    values = [PrefixRuns(model, one, metric=LOGIT)(all_masks(4)) for one in (alone, selected)]
    torch.testing.assert_close(*values, atol=1e-6, rtol=0)
    assert difference(model, batch.select([1]), all_masks(4)) < 1e-5


def test_all_kept_is_the_clean_model_and_all_ablated_blocks_every_head() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)
    ones = torch.ones(1, 3, 4, dtype=torch.bool)
    runs = PrefixRuns(model, inputs, metric=LOGIT, baseline="knockout")
    kept, ablated = runs(torch.cat([ones, ~ones])).float()
    with torch.no_grad():
        assert kept.item() == pytest.approx(LOGIT(model(inputs), inputs).item(), abs=1e-6)
        blocked = model.run(inputs, [HeadMask(mask=~ones[0], baseline="knockout")]).logits
    assert ablated.item() == pytest.approx(LOGIT(blocked, inputs).item(), abs=1e-5)
    assert abs(kept - ablated) > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_and_order_do_not_matter(batch_size: int) -> None:
    model = tiny_model(n_kv=2)
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, batch_size=batch_size)
    masks = all_masks(9)
    values, shuffle = runs(masks), torch.randperm(len(masks), generator=rng(4))
    torch.testing.assert_close(
        values, PrefixRuns(model, tiny_sample(model), metric=LOGIT)(masks), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(runs(masks[shuffle]), values[shuffle], atol=1e-5, rtol=0)
    assert runs.n_runs == 2 * len(masks)


def test_the_same_call_gives_the_same_bits() -> None:
    model = tiny_model()
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT)
    assert torch.equal(runs(all_masks(9)), runs(all_masks(9)))


def test_masks_that_start_high_skip_the_layers_below(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    runs = PrefixRuns(model, tiny_sample(model), metric=LOGIT, batch_size=2)
    masks = torch.ones(4, 3, 4, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 2, 0] = masks[2, 2, 1] = False  # the last keeps all
    seen: list[int] = []
    original = PrefixRuns._layer
    monkeypatch.setattr(
        PrefixRuns, "_layer", lambda self, x, i, *rest: seen.append(i) or original(self, x, i, *rest)
    )
    runs(masks)
    assert seen == [0, 1, 2, 2]  # {0, 1} from layer 0, {2, all kept} from layer 2


def test_progress_counts_masks() -> None:
    model = tiny_model()
    with tqdm(total=9, file=io.StringIO()) as bar:
        PrefixRuns(model, tiny_sample(model), metric=LOGIT, batch_size=4)(random_masks(9), progress=bar)
        assert bar.n == 9


def test_a_callable_as_metric_reads_the_whole_vocabulary() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)

    def spread(logits: torch.Tensor, inputs: object) -> torch.Tensor:
        assert logits.shape[-1] == 100
        return logits[:, -1].std(dim=-1)

    assert difference(model, inputs, all_masks(5), metric=as_metric(spread), baseline="knockout") < 1e-5


# --- what must fail


@pytest.mark.parametrize(
    "masks",
    [
        torch.ones(2, 4, 3, dtype=torch.bool),
        torch.ones(3, 4, dtype=torch.bool),
        torch.ones(2, 3, 4),
        torch.ones(0, 3, 4, dtype=torch.bool),
    ],
    ids=["transposed", "no mask axis", "not boolean", "none"],
)
@pytest.mark.parametrize("runs", [PrefixRuns, PlainRuns])
@pytest.mark.usefixtures("unchecked")
def test_masks_of_another_shape_or_dtype(runs: type, masks: torch.Tensor) -> None:
    model = tiny_model()
    ready = runs(model, tiny_sample(model), metric=LOGIT)
    with pytest.raises(ShapeError, match=r"Bool\[mask, layer, head\] = \[n, 3, 4\], n > 0; given"):
        ready(masks)


def test_prompts_that_do_not_qualify() -> None:
    model = tiny_model()
    with pytest.raises(EngineNotExact, match="no image tokens"):
        PrefixRuns(model, model.prepare([Prompt(question="what is this ?", answer="red")]), metric=LOGIT)
    with pytest.raises(EngineNotExact, match="nothing follows the last image token"):
        PrefixRuns(model, tiny_sample(model, n_after=0), metric=LOGIT)
    batch = model.prepare([prompt(0), prompt(1)])
    with pytest.raises(ShapeError, match=r"one sample at a time, not 2: inputs.select"):
        PrefixRuns(model, batch, metric=LOGIT)


def test_hooks_on_the_model_are_refused_before_and_during() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)
    runs = PrefixRuns(model, inputs, metric=LOGIT)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: None)]):
        with pytest.raises(EngineNotExact, match=r"blocks.1.attn.hook_z.*engine='plain'"):
            PrefixRuns(model, inputs, metric=LOGIT)
        with pytest.raises(EngineNotExact, match="have hooks"):
            runs(random_masks(2))
    runs(random_masks(2))


def test_missing_answers_and_foils() -> None:
    model = tiny_model()
    inputs = replace(tiny_sample(model), foil_ids=None)
    with pytest.raises(AnswerError, match="the foil of every sample"):
        PrefixRuns(model, inputs, metric=as_metric("logit_diff"))
    with pytest.raises(AnswerError, match=r"Prompt\(..., answer='word'\)"):
        PlainRuns(model, replace(inputs, answer_ids=None), metric=LOGIT)


@pytest.mark.usefixtures("unchecked")
def test_unknown_baseline_and_batch_size() -> None:
    model = tiny_model()
    inputs = tiny_sample(model)
    with pytest.raises(InterventionError, match="'median' is unknown; known: mean_image_tokens"):
        PlainRuns(model, inputs, metric=LOGIT, baseline="median")
    for runs in (PrefixRuns, PlainRuns):
        with pytest.raises(ConfigError, match="batch_size=0"):
            runs(model, inputs, metric=LOGIT, batch_size=0)


def test_non_finite_metrics_are_never_returned() -> None:
    model = tiny_model()
    metric = as_metric(lambda logits, inputs: logits[:, -1, 0] * torch.nan)
    with pytest.raises(NonFiniteError, match="is nan in 3 of 3 runs"):
        PrefixRuns(model, tiny_sample(model), metric=metric)(random_masks(3))
