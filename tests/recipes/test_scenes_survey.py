"""The survey end to end on a tiny model that says yes or no: accuracies as Hugging Face's model gives them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmlens.analyses import map_similarity
from mmlens.datasets import scenes
from mmlens.errors import ConfigError
from mmlens.interventions import Block
from mmlens.model import HookedVLM
from mmlens.pretrained.architecture import build_model, build_processor, save_folder
from mmlens.pretrained.evaluate import barred
from mmlens.pretrained.vocabulary import PROMPT
from mmlens.recipes.scenes_survey import (
    ScenesSurvey,
    _pair_table,
    _plain,
    layer_conditions,
    main,
    scenes_survey,
)
from tests.result.examples import attribution

N, N_MAPS, SEED = 10, 2, 5
FAMILIES = ("existence", "colour")
CONDITIONS = ("clean", "blocked", "from 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers; it says yes or no to whatever is asked. Its seeds are such that every condition matters."""
    hf = build_model(1, layers=2, vision_layers=1)
    yes, no = build_processor().tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        hf.lm_head.weight.mul_(0.01)
        hf.lm_head.weight[yes] = torch.randn(96, generator=torch.Generator().manual_seed(4))
        hf.lm_head.weight[no] = -hf.lm_head.weight[yes]
    path = tmp_path_factory.mktemp("model")
    save_folder(hf, path)
    return path


@pytest.fixture(scope="module")
def survey(folder: Path) -> ScenesSurvey:
    model = HookedVLM.from_pretrained(str(folder))
    return scenes_survey(
        model, n=N, n_maps=N_MAPS, families=FAMILIES, seed=SEED, batch_size=4, progress=False
    )


def hf_answers(folder: Path, family: str) -> tuple[list[str], dict[str, list[str]]]:
    """Right answers, and what the unmodified model says when a mask bars the image in some layers."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    hf = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    hf.set_attn_implementation("eager")
    pairs = list(scenes.sample("heldout", N, family=family, seed=SEED))
    texts = [PROMPT.format(question=question.text) for _, question in pairs]
    images = [picture.image for picture, _ in pairs]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    mask = barred(batch["input_ids"], batch["attention_mask"], hf.config.image_token_id)
    layers, said = hf.model.language_model.layers, {}
    for condition, closed in zip(CONDITIONS, ([], [0, 1], [0]), strict=True):
        handles = [
            layers[i].register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
            )
            for i in closed
        ]
        with torch.no_grad():
            tokens = hf(**batch).logits[:, -1].argmax(-1)
        said[condition] = [processor.decode([token]) for token in tokens.tolist()]
        for handle in handles:
            handle.remove()
    return [question.answer for _, question in pairs], said


def test_accuracies_are_those_of_the_unmodified_model(folder: Path, survey: ScenesSurvey) -> None:
    figures = survey.figures()["accuracy"]
    assert list(figures) == [*FAMILIES, "all"]
    right = Counter()
    for family in FAMILIES:
        wanted, said = hf_answers(folder, family)
        found = figures[family]
        assert list(found["conditions"]) == list(CONDITIONS) and found["n"] == N
        assert found["majority"] == Counter(wanted).most_common(1)[0][1] / N
        for condition, words in said.items():
            hits = sum(a == b for a, b in zip(wanted, words, strict=True))
            right[condition] += hits
            ends = binomtest(hits, N).proportion_ci(0.95, method="wilson")
            assert list(found["conditions"][condition].values()) == pytest.approx([hits / N, *ends])
        if family == "existence":
            assert len({one["accuracy"] for one in found["conditions"].values()}) == 3
    for condition in CONDITIONS:
        assert figures["all"]["conditions"][condition]["accuracy"] == right[condition] / (2 * N)


def test_maps_come_from_pictures_of_their_own(survey: ScenesSurvey) -> None:
    digests = [one for result in survey.attributions.values() for one in result.info.image_sha256]
    assert len(set(digests)) == len(digests) == N_MAPS * len(FAMILIES)
    own = SEED + 1 + scenes.FAMILIES.index("colour")
    asked = scenes.prompts("heldout", N_MAPS, family="colour", seed=own)
    assert survey.attributions["colour"].info.prompts == tuple(one.question for one in asked)


def test_similarity_is_that_of_the_maps(survey: ScenesSurvey) -> None:
    again = map_similarity(survey.attributions, seed=SEED)
    assert again.data.identical(survey.similarity.data)
    figures = survey.figures()
    assert len(figures["similarity"]["cosines"]) == 4
    (pair,) = figures["similarity"]["pairs"]
    assert (pair["first"], pair["second"]) == FAMILIES
    assert pair["gap"] == survey.similarity.data["gap"].item()
    theta = np.array(figures["maps"]["colour"]["theta_by_sample"])
    assert np.array_equal(theta, survey.attributions["colour"].theta.values)
    np.testing.assert_allclose(figures["maps"]["colour"]["theta"], theta.mean(axis=0))


def test_the_command_prints_tables_and_writes_the_same_figures(
    folder: Path, survey: ScenesSurvey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "survey.json"
    main(
        f"--model {folder} --n {N} --n-maps {N_MAPS} --seed {SEED} --families {' '.join(FAMILIES)} "
        f"--out {out} --no-progress".split()
    )
    printed = capsys.readouterr().out
    written, expected = json.loads(out.read_text()), survey.figures()
    assert written.pop("seconds") > 0 and expected.pop("seconds") > 0
    assert written == expected
    assert printed.startswith(survey.tables()) and str(out) in printed
    share = expected["accuracy"]["existence"]["conditions"]["from 1"]
    cell = "{:.0f} ({:.0f}-{:.0f})".format(*(100 * share[key] for key in ("accuracy", "lower", "upper")))
    (row,) = [line for line in printed.splitlines() if line.startswith("existence") and "(" in line]
    assert row.endswith(cell)
    layer, head = np.unravel_index(np.argmax(expected["maps"]["colour"]["theta"]), (2, 8))
    assert f"L{layer}H{head} {np.max(expected['maps']['colour']['theta']):+.2f}, " in printed


def test_conditions_close_the_image_below_a_layer() -> None:
    found = layer_conditions(4)
    assert list(found) == ["blocked", "from 1", "from 2", "from 3"]
    for (block,), layers in zip(found.values(), (None, [0], [0, 1], [0, 1, 2]), strict=True):
        assert isinstance(block, Block) and (block.src, block.dst, block.heads) == ("image", "text", None)
        assert (block.layers is None) if layers is None else (list(block.layers) == layers)
    assert list(layer_conditions(1)) == ["blocked"]


def test_one_family_has_nothing_to_compare() -> None:
    assert _pair_table(map_similarity({"a": attribution(2)}, n_boot=2)).startswith("one family")


def test_undefined_figures_become_null() -> None:
    assert _plain({"a": [float("nan"), (1.0, float("inf"))], "b": {"c": "x", "d": 2}}) == {
        "a": [None, [1.0, None]],
        "b": {"c": "x", "d": 2},
    }


# --- what must fail


@pytest.mark.parametrize("options", [{"n": 0}, {"n_maps": 1}, {"families": ()}])
def test_too_little_is_refused_before_anything_runs(options: dict[str, Any], folder: Path) -> None:
    with pytest.raises(ConfigError, match="are too few"):
        scenes_survey(HookedVLM.from_pretrained(str(folder)), progress=False, **options)


def test_unknown_families_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="'weather' is unknown"):
        scenes_survey(HookedVLM.from_pretrained(str(folder)), families=("weather",), progress=False)
    with pytest.raises(SystemExit):
        main(["--families", "weather"])
    assert "invalid choice" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"mmlens: ResultError: the folder of --out .* does not exist"):
        main(["--model", str(tmp_path / "none"), "--out", str(tmp_path / "no" / "x.json")])
    with pytest.raises(SystemExit, match="mmlens: CheckpointError"):
        main(["--model", str(tmp_path / "none")])
