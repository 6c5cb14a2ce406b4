import json
import subprocess
import sys

import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmlens import pretrained
from mmlens.datasets.scenes import ANSWERS, FAMILIES, sample
from mmlens.pretrained.evaluate import ACCURACY, _blocked, _processed, barred, evaluate, wilson

N = 48


@pytest.fixture(scope="module")
def scores():
    return {score.family: score for score in evaluate(pretrained.path("scenes"), n=N)}


@pytest.fixture(scope="module")
def shipped():
    """What the folder says of itself, by family."""
    rows = json.loads((pretrained.path("scenes") / ACCURACY).read_text())
    return {row["family"]: row for row in rows}


def test_the_shipped_scores_are_of_every_family(shipped):
    assert tuple(shipped) == FAMILIES
    for row in shipped.values():
        assert row["n"] >= 1000 and row["accuracy"] == row["right"] / row["n"]
        assert row["interval"] == pytest.approx(wilson(row["right"], row["n"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_model_answers_as_its_folder_says(family, scores, shipped):
    score, row = scores[family], shipped[family]
    assert score.n == N
    assert binomtest(score.right, N, row["accuracy"]).pvalue > 1e-3
    assert binomtest(score.blocked_right, N, row["blocked_right"] / row["n"]).pvalue > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_model_is_good_enough_to_study(family, shipped):
    assert shipped[family]["accuracy"] >= (0.75 if family == "digit" else 0.9), "handwriting it never saw"


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_image_it_only_guesses(family, scores, shipped):
    assert scores[family].blocked_right / N <= scores[family].majority + 0.1
    assert shipped[family]["accuracy"] > shipped[family]["blocked_right"] / shipped[family]["n"] + 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_image_it_says_a_word_of_the_family(family):
    """It was trained on images that the text cannot read, so it still knows what is asked for."""
    folder = pretrained.path("scenes")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    batch = _processed(processor, list(sample("heldout", 8, family=family)))
    assert set(_blocked(model, processor, batch)) <= set(ANSWERS[family])


def test_the_model_is_plain_transformers_in_a_fresh_process():
    code = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
folder = sys.argv[1]
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
chat = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (80, 80), "grey")},
        {"type": "text", "text": "Is there a star in the image?"}]}]
batch = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
print(processor.decode(model.generate(**batch)[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
assert "torchvision" not in sys.modules and "mmlens" not in sys.modules
"""
    job = [sys.executable, "-c", code, str(pretrained.path("scenes"))]
    done = subprocess.run(job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no"


def test_barred_hides_the_image_from_what_follows_and_from_nothing_else():
    ids = torch.tensor([[0, 4, 3, 3, 5, 6], [4, 3, 3, 5, 6, 7]])
    real = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    seen = (barred(ids, real, 3)[:, 0] == 0).int().tolist()
    assert seen[0] == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]
    assert seen[1][5] == [1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("right", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611)])
def test_wilson_against_published_values(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)
