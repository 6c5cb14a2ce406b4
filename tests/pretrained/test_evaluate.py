import subprocess
import sys

import pytest
import torch

from mmlens import pretrained
from mmlens.pretrained.evaluate import barred, evaluate, wilson


@pytest.fixture(scope="module")
def scores():
    return {score.family: score for score in evaluate(pretrained.path("scenes"), n=64)}


@pytest.mark.parametrize(
    ("family", "least"),
    [("main", 0.9), ("colour", 0.95), ("count", 0.35), ("existence", 0.9), ("box", 0.95), ("side", 0.75)],
)
def test_the_shipped_model_answers(scores, family, least):
    assert scores[family].n == 64
    assert scores[family].accuracy >= least


@pytest.mark.parametrize("family", ["main", "colour", "count", "existence", "box", "side"])
def test_without_the_image_it_only_guesses(scores, family):
    score = scores[family]
    assert score.blocked_right / score.n <= score.majority + 0.1


def test_the_model_is_plain_transformers_in_a_fresh_process():
    code = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
folder = sys.argv[1]
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
chat = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (80, 80), "grey")},
        {"type": "text", "text": "Is there a star in the image? Answer with a single word."}]}]
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
