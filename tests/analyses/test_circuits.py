"""Circuits: worked numbers of two small games, a planted model, and what must fail."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmlens.analyses import circuits
from mmlens.analyses.circuits import circuit, ratio_interval
from mmlens.engine import MaskedRuns
from mmlens.errors import DesignError
from mmlens.interventions import HeadMask
from mmlens.metrics import as_metric
from tests.analyses.build import PLANTED, helped_prompts, planted_model

FAST = {"self_check": False, "progress": False, "n_draws": 6, "n_boot": 50}


@pytest.fixture(scope="module")
def planted() -> tuple[Any, Any]:
    model = planted_model()
    return model, helped_prompts(model, 3)


def mask_of(*heads: tuple[int, int]) -> Tensor:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    for head in heads:
        mask[head] = True
    return mask


class Game(MaskedRuns):
    """Stands in for the runs of one prompt: any function of the heads that may read the image."""

    engine = "game"

    def __init__(self, value: Any) -> None:
        self.value = value
        self.batch_size, self.n_halvings = 1, 0

    def __call__(self, masks: Tensor, *, progress: Any = None) -> Tensor:
        return self.run_batch(masks)

    def run_batch(self, masks: Tensor) -> Tensor:
        return torch.tensor([float(self.value(mask)) for mask in masks], dtype=torch.float64)


def played(monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any], value: Any, *heads: Any) -> Any:
    monkeypatch.setattr(circuits, "open_runs", lambda *args, **options: Game(value))
    return circuit(*planted, {"set": mask_of(*heads)}, **FAST).data.isel(group=0)


WEIGHTS = np.array([1.0, 2.0, 6.0])
"""How much the game is worth, prompt by prompt."""


def weighted(monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any], value: Any, *heads: Any) -> Any:
    """A game whose worth, and what it gives for nothing, differ from prompt to prompt."""
    worth = iter(WEIGHTS.tolist())

    def opened(*args: Any, **options: Any) -> Game:
        scale = next(worth)
        return Game(lambda mask: 5 - scale + scale * value(mask))

    monkeypatch.setattr(circuits, "open_runs", opened)
    return circuit(*planted, {"set": mask_of(*heads)}, **FAST).data.isel(group=0)


class TestWorkedNumbers:
    def test_heads_that_add_up(self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]) -> None:
        """m = 10 + 5 a + 3 b + 2 c; the set is a, b and an idle head."""

        def value(mask: Tensor) -> float:
            return 10 + 5 * mask[0, 0] + 3 * mask[1, 1] + 2 * mask[2, 2]

        found = played(monkeypatch, planted, value, (0, 0), (1, 1), (2, 0))
        np.testing.assert_allclose(found["effect"], 10)
        np.testing.assert_allclose(found["faithfulness"], 0.8)
        np.testing.assert_allclose(found["completeness"], 0.8)
        expected = np.zeros((3, 4))
        expected[0, 0], expected[1, 1], expected[2, 2] = 0.5, 0.3, 0.2
        np.testing.assert_allclose(found["adds"].mean("sample"), expected, atol=1e-12)
        inside = found["members"].values == 1
        np.testing.assert_allclose(found["adds_most"].values[inside], [0.5, 0.3, 0.0], atol=1e-12)
        assert np.isnan(found["adds_most"].values[~inside]).all()
        apart = found["knocked_model"] - found["knocked_circuit"]
        np.testing.assert_allclose(apart, 0.2)  # whatever is knocked out, the set misses c
        np.testing.assert_allclose(found["faithfulness_interval"], 0.8)

    def test_heads_that_stand_in_for_each_other(
        self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]
    ) -> None:
        """m = a or b or c; the set is a and b."""

        def value(mask: Tensor) -> bool:
            return bool(mask[0, 0] | mask[1, 1] | mask[2, 2])

        found = played(monkeypatch, planted, value, (0, 0), (1, 1))
        np.testing.assert_allclose(found["faithfulness"], 1)
        np.testing.assert_allclose(found["completeness"], 0)  # the third takes over
        np.testing.assert_allclose(found["adds"], 0)  # no head alone adds anything
        inside = found["members"].values == 1
        np.testing.assert_allclose(found["adds_most"].values[inside], 1)  # each does once the other is gone
        np.testing.assert_allclose(found["knocked_model"], 1)
        np.testing.assert_allclose(found["knocked_circuit"], 1)  # some of the set is always left

    def test_random_sets(self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]) -> None:
        """m counts the heads of layer 1: every set of the same layers is as good."""
        found = played(monkeypatch, planted, lambda mask: mask[1].sum(), (0, 0), (1, 1), (1, 2))
        np.testing.assert_allclose(found["faithfulness"], 0.5)
        np.testing.assert_allclose(found["random_faithfulness"], 0.5)
        np.testing.assert_allclose(found["random_completeness"], 0.5)

    def test_complements_are_not_the_sets(
        self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]
    ) -> None:
        """Two heads of layer 1 do it all: those of the set, or the other two. Enough, and not complete."""
        found = weighted(monkeypatch, planted, lambda mask: mask[1].sum() >= 2, (0, 0), (1, 1), (1, 2))
        share = WEIGHTS / WEIGHTS.mean()
        np.testing.assert_allclose(found["effect"], WEIGHTS)
        np.testing.assert_allclose(found["faithfulness"], share)
        np.testing.assert_allclose(found["completeness"], 0, atol=1e-12)
        for draw in range(FAST["n_draws"]):
            np.testing.assert_allclose(found["random_faithfulness"][draw], share)
            np.testing.assert_allclose(found["random_completeness"][draw], 0, atol=1e-12)
        np.testing.assert_allclose(found["faithfulness_interval"], 1)
        np.testing.assert_allclose(found["completeness_interval"], 0, atol=1e-12)

    def test_what_is_knocked_out_of_circuit_and_of_model(
        self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]
    ) -> None:
        """Only heads outside the set count: all of them are left in the model, and none in the circuit."""
        outside = ~mask_of((0, 0), (1, 1), (1, 2))
        found = weighted(
            monkeypatch, planted, lambda mask: int((mask & outside).sum()) / 9, (0, 0), (1, 1), (1, 2)
        )
        share = WEIGHTS / WEIGHTS.mean()
        np.testing.assert_allclose(found["faithfulness"], 0, atol=1e-12)
        np.testing.assert_allclose(found["completeness"], 0, atol=1e-12)
        for draw in range(FAST["n_draws"]):
            np.testing.assert_allclose(found["knocked_model"][draw], share)
            np.testing.assert_allclose(found["knocked_circuit"][draw], 0, atol=1e-12)
        adds = outside.numpy()[None] * share[:, None, None] / 9
        np.testing.assert_allclose(found["adds"], adds, atol=1e-12)

    def test_shares_are_of_the_mean_effect(
        self, monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]
    ) -> None:
        """A prompt's share is its gain over the mean effect, so prompts with a small effect count little."""
        found = weighted(monkeypatch, planted, lambda mask: int(mask.sum()) / 12, (0, 0), (1, 1), (1, 2))
        gain, mean = WEIGHTS * 3 / 12, WEIGHTS.mean()
        for name in ("faithfulness", "completeness"):
            np.testing.assert_allclose(found[name], gain / mean)
            np.testing.assert_allclose(
                found[f"{name}_interval"], 0.25
            )  # the ratio of sums is the same everywhere
        for name in ("random_faithfulness", "random_completeness"):
            np.testing.assert_allclose(found[name], np.tile(gain / mean, (FAST["n_draws"], 1)))
        np.testing.assert_allclose(found["adds"].mean("sample"), 1 / 12)
        np.testing.assert_allclose(found["adds_interval"], 1 / 12)
        np.testing.assert_allclose(found["adds_most"].values[found["members"].values == 1], 1 / 12)

    def test_interval_of_a_ratio_of_sums(self) -> None:
        gain, effect = np.array([1.0, 3.0]), np.array([2.0, 4.0])
        # draws of two prompts: 1/2, 4/6 and 3/4
        np.testing.assert_allclose(ratio_interval(gain, effect, 500, 0), [0.5, 0.75])
        assert np.isnan(ratio_interval(gain[:1], effect[:1], 10, 0)).all()
        assert np.isnan(ratio_interval(gain, np.array([1.0, -1.0]), 100, 0)).all()

    def test_interval_is_of_sums_and_not_of_each_prompts_ratio(self) -> None:
        """Prompts with a small effect count little, however extreme their own ratio is."""
        effect = np.array([1.0, 1, 1, 1, 20, 20, 20, 20])
        gain = np.array([1.0, 0, 1, 0, 5, 15, 10, 10])
        ratios = [
            (drawn * gain).sum() / (drawn * effect).sum()
            for drawn in np.random.default_rng([0, 8]).multinomial(8, np.full(8, 1 / 8), size=200)
        ]
        found = ratio_interval(gain, effect, 200, 0)
        np.testing.assert_allclose(found, np.percentile(ratios, [2.5, 97.5]), rtol=1e-9)


class TestPlanted:
    def test_the_planted_heads_are_the_circuit(self, planted: tuple[Any, Any]) -> None:
        sets = {"planted": mask_of(*PLANTED), "half": mask_of(PLANTED[0]), "idle": mask_of((1, 1), (1, 2))}
        table = circuit(*planted, sets, progress=False, n_draws=4, n_boot=50).summary()
        assert table.loc["planted", "faithfulness"] == pytest.approx(1, abs=1e-5)
        assert table.loc["planted", "completeness"] == pytest.approx(1, abs=1e-5)
        assert table.loc["planted", "incompleteness"] == pytest.approx(0, abs=1e-5)
        assert table.loc["idle", "faithfulness"] == pytest.approx(0, abs=1e-5)
        assert abs(table.loc["half", "faithfulness"] - 1) > 1e-3
        assert table.loc["half", "incompleteness"] > 1e-3

    def test_shares_are_those_of_plain_runs(self, planted: tuple[Any, Any]) -> None:
        model, prompts = planted
        chosen = mask_of(PLANTED[0], (1, 1))
        result = circuit(model, prompts, {"set": chosen}, progress=False, n_draws=2, n_boot=10)
        inputs, logit = model.prepare(prompts), as_metric("logit")

        @torch.no_grad()
        def value(mask: Tensor) -> np.ndarray:
            return logit(model.run(inputs, HeadMask(mask=mask)).logits, inputs).double().numpy()

        none, everything = value(mask_of()), value(~mask_of())
        effect = everything - none
        data = result.data.isel(group=0)
        np.testing.assert_allclose(data["effect"], effect, atol=1e-5)
        share = (value(chosen) - none) / effect.mean()
        np.testing.assert_allclose(data["faithfulness"], share, atol=1e-5)
        share = (everything - value(~chosen)) / effect.mean()
        np.testing.assert_allclose(data["completeness"], share, atol=1e-5)
        share = (value(chosen) - value(mask_of((1, 1)))) / effect.mean()
        np.testing.assert_allclose(data["adds"][:, PLANTED[0][0], PLANTED[0][1]], share, atol=1e-5)
        share = (value(chosen | mask_of(PLANTED[1])) - value(chosen)) / effect.mean()
        np.testing.assert_allclose(data["adds"][:, PLANTED[1][0], PLANTED[1][1]], share, atol=1e-5)

    def test_the_same_seed_gives_the_same_numbers(self, planted: tuple[Any, Any]) -> None:
        sets = {"planted": mask_of(*PLANTED)}
        one, two, other = (circuit(*planted, sets, seed=seed, **FAST).data for seed in (1, 1, 2))
        assert one.equals(two)
        assert not one["knocked_circuit"].equals(other["knocked_circuit"])


def test_a_set_is_tested_on_other_prompts(planted: tuple[Any, Any]) -> None:
    from mmlens.analyses import choose_heads, single_head_ablation

    model, prompts = planted
    scores = single_head_ablation(model, prompts[:1], progress=False)
    sets = {"top 2": choose_heads(scores, k=2)}
    with pytest.raises(DesignError, match="chosen on 1 of these 3"):
        circuit(model, prompts, sets, **FAST)
    result = circuit(model, prompts, sets, allow_overlap=True, **FAST)
    assert result.info.settings["prompts_also_chosen_on"] == {"top 2": 1}
    assert result.heads("top 2") == sets["top 2"].heads


def test_an_image_that_does_not_help_is_refused(
    monkeypatch: pytest.MonkeyPatch, planted: tuple[Any, Any]
) -> None:
    with pytest.raises(DesignError, match="does not help"):
        played(monkeypatch, planted, lambda mask: -mask.sum(), (0, 0))


@pytest.mark.parametrize("options", [{"n_draws": 0}, {"n_boot": 0}])
def test_no_draws_are_refused(planted: tuple[Any, Any], options: dict[str, int]) -> None:
    with pytest.raises(DesignError, match="at least 1"):
        circuit(*planted, {"set": mask_of((0, 0))}, **FAST | options)
