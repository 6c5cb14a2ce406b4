"""The control model: ``python -m mmlens.pretrained.random_weights --base scenes --folder scenes-random``.

Every matrix, embedding and convolution of a trained folder is drawn anew, from a normal distribution with its
own mean and standard deviation, so that activations keep their scale; norms and biases stay.
``mmlens.model.random_twin`` does the same to any loaded model.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from mmlens.pretrained import names, path
from mmlens.pretrained.architecture import save_folder
from mmlens.pretrained.checksums import seal
from mmlens.pretrained.evaluate import Score, evaluate, write_scores

_CARD = """\
---
license: mit
library_name: transformers
---
# {name}: the scenes model with random weights

A control, good for nothing else: the architecture, processor, norms and biases of `{base}`, and every matrix,
embedding and convolution drawn anew from a normal distribution with the trained one's mean and standard
deviation (seed {seed}). What an analysis finds here, too, says nothing about training.

Made by `python -m mmlens.pretrained.random_weights --base {base} --folder {name} --seed {seed}`. On {n} held-out
scenes of every question family it answers at most {best:.3f} rightly.
"""


@torch.no_grad()
def randomise(model: nn.Module, *, seed: int) -> None:
    """Draw every parameter of two or more dimensions anew, in place.

    Args:
        model: the trained model.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter.std() + parameter.mean())


def write_control(base: Path, folder: Path, *, seed: int, n: int) -> tuple[Score, ...]:
    """Write the control's folder: weights, processor, scores, card, checksums.

    Args:
        base: folder of the trained model.
        folder: where the control goes.
        seed: of the draw.
        n: held-out scenes of each question family to score it on.
    """
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    randomise(model, seed=seed)
    save_folder(model, folder)
    scores = evaluate(folder, n=n)
    write_scores(scores, folder)
    best = max(score.accuracy for score in scores)
    card = _CARD.format(name=folder.name, base=base.name, seed=seed, n=n, best=best)
    (folder / "README.md").write_text(card)
    seal(folder)
    return scores


def main(given: list[str] | None = None) -> None:
    """Parse the command line and write the control."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.pretrained.random_weights", description=__doc__)
    parser.add_argument("--base", default="scenes", help="embedded model or folder")
    parser.add_argument("--folder", type=Path, required=True, help="where the control goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluated", type=int, default=500, help="held-out scenes of each question family")
    given_ = parser.parse_args(given)
    base = path(given_.base) if given_.base in names() else Path(given_.base)
    write_control(base, given_.folder, seed=given_.seed, n=given_.evaluated)


if __name__ == "__main__":
    main()
