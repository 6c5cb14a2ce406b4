"""The model card of a scenes model: what it is, what it was trained on, how well it answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlens.datasets.scenes.questions import TEMPLATES
from mmlens.pretrained.evaluate import Score
from mmlens.pretrained.objective import ALIGN_WEIGHT, DENSE_WEIGHT, END_WEIGHT

_HEAD = """\
---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}: a small LLaVA that answers questions about drawn shapes

An ordinary LLaVA-1.5 of {parameters:,} parameters ({layers} decoder layers of 8 heads, a
{vision_layers}-layer CLIP tower, a two-layer GELU projector, width 96, 80×80 images of 8×8 cells),
trained from nothing on procedural scenes (`mmlens.datasets.scenes`). It is meant for studying how image
information reaches the answer; it is good for nothing else. Weights are stored in fp16 and were scored
after that rounding.

    USER: <image>\\n{{question}} Answer with a single word. ASSISTANT:

The tokenizer knows whole words only, and adds no token of its own.

## Accuracy

{n} fresh held-out scenes a question family, through `AutoProcessor`, `AutoModelForImageTextToText` and
`generate`. "Barred": no position behind the image may read it, in any layer. "Majority": the most
frequent right answer's share. Barred accuracy may lie below it: the model was never trained without the
image, and may then say a word of another family.

| family | question | accuracy | 95 % (Wilson) | barred | majority |
| --- | --- | --- | --- | --- | --- |
"""

_TRAINING = """
## Training

- Data: seed {seed}, split `train`, {images:,} scenes, each seen once, up to six questions a scene
  packed behind one image. Splits share no layout, by construction.
- {steps:,} steps of {batch} images over {ranks} CPU processes; Muon for matrices (rate {matrix_lr}),
  AdamW for the rest (rate {other_lr}); {warmup} steps of warm-up, the last {decay:.0%} falling to zero;
  then {refine:,} steps falling from half the rate to zero again; fp32; no dropout.
- The patch embedding starts as whitened principal components of training patches, positions as sines.
- Loss: answer + {end} × end token + {dense} × dense + {align} × alignment.

### What image tokens hold by construction

Two auxiliary losses stand in for the pretraining that a full-size LLaVA brings along. *Dense*: linear
readers on the tower's output must tell each cell's class, colour, and whether a box is drawn around its
object (the stand-in for CLIP). *Alignment*: a projected image token on an object must lie nearer to the
word embedding of that object's class than to those of other classes, and likewise for its colour (the
stand-in for LLaVA's first stage). So that image tokens hold class, colour and "in the box", cell by
cell and linearly readable, and resemble word embeddings, was *put there*: finding it with a probe, a
lens or an ablation of object tokens is no discovery. Counting, comparing sizes, finding the named
object, and all flow from image tokens into text come from the answer loss alone.

### Curve

Accuracy on the training scenes of the last {every} steps, before each was learnt from: scenes not seen
before.

| step | answer loss | dense | alignment | {families} |
| --- | --- | --- | --- | {rule} |
"""

_RETRAIN = """
## Training it again

    python -m mmlens.pretrained.train --out RUN --folder MODEL{flags}

A killed run goes on from its last checkpoint when the same command is given again.
"""


def write_card(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    parameters: int,
    curve: Sequence[Mapping[str, Any]],
    scores: Sequence[Score],
    points: int = 12,
) -> None:
    """Write ``README.md`` into the folder.

    Args:
        folder: The model's folder; its name is the model's.
        settings: The training run's settings, by name.
        parameters: Number of weights.
        curve: The learning curve.
        scores: Accuracy of the finished folder.
        points: Most rows of the curve's table.
    """
    n = scores[0].n if scores else 0
    parts = [_HEAD.format(name=folder.name, parameters=parameters, n=f"{n:,}", **settings)]
    parts += [_score_row(score) for score in scores]
    parts.append(_training(settings, curve, points))
    parts.append(
        _RETRAIN.format(
            flags=f" --steps {settings['steps']} --refine {settings['refine']} --seed {settings['seed']}"
        )
    )
    (folder / "README.md").write_text("".join(parts))


def _score_row(score: Score) -> str:
    low, high = score.interval
    question = TEMPLATES[score.family].format(name="circle", plural="circles")
    barred = "–" if score.blocked_right is None else f"{score.blocked_right / score.n:.3f}"
    cells = (score.family, question, f"{score.accuracy:.3f}", f"{low:.3f}–{high:.3f}", barred)
    return "| " + " | ".join(cells) + f" | {score.majority:.3f} |\n"


def _training(settings: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], points: int) -> str:
    families = list(curve[0]["accuracy"]) if curve else []
    told = _TRAINING.format(
        images=(settings["steps"] + settings["refine"]) * settings["batch"],
        end=END_WEIGHT,
        dense=DENSE_WEIGHT,
        align=ALIGN_WEIGHT,
        every=curve[0]["step"] if curve else 0,
        families=" | ".join(families),
        rule=" | ".join("---" for _ in families),
        **settings,
    )
    last = {round((i + 1) * len(curve) / points) - 1 for i in range(points)}
    return told + "".join(_curve_row(point) for i, point in enumerate(curve) if i in last)


def _curve_row(point: Mapping[str, Any]) -> str:
    values = [f"{point[name]:.3f}" for name in ("answer", "dense", "align")]
    values += [f"{value:.2f}" for value in point["accuracy"].values()]
    return f"| {point['step']} | " + " | ".join(values) + " |\n"
