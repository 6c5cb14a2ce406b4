"""The model card of the scenes model: what it is, what it was trained on, how well it answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlens.datasets.scenes import CLASSES
from mmlens.datasets.scenes.questions import PHRASINGS, TEMPLATES
from mmlens.pretrained.batches import NEVER, OPEN_FROM, QUESTIONS_PER_IMAGE
from mmlens.pretrained.evaluate import Score
from mmlens.pretrained.objective import ALIGN_WEIGHT, DENSE_WEIGHT, END_WEIGHT

_HEAD = """\
---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}: a small LLaVA that answers questions about drawn shapes and handwritten digits

An ordinary LLaVA-1.5 of {parameters:,} parameters ({layers} decoder layers of 8 heads, a
{vision_layers}-layer CLIP tower, a two-layer GELU projector, width 96, 80×80 images of 8×8 cells),
trained from nothing on procedural scenes (`mmlens.datasets.scenes`): {classes} classes (shapes drawn by
formula, and the real handwriting of scikit-learn's `load_digits`) and {families} question families. It is
meant for studying how image information reaches the answer; it is good for nothing else. Weights are stored
in fp16 and were scored after that rounding.

    USER: <image>\\n{{question}} ASSISTANT:

The tokenizer knows whole words only, and adds no token of its own.

## Accuracy

{n} fresh held-out scenes a question family, through `AutoProcessor`, `AutoModelForImageTextToText` and
`generate`. "Barred": no position behind the image may read it, in any layer. "Majority": the most
frequent right answer's share. The model was trained on images that the text can never read ({never} in
{images_drawn}), so that, barred, it says a likely answer to the question rather than any word.

| family | question | accuracy | 95 % (Wilson) | barred | majority |
| --- | --- | --- | --- | --- | --- |
"""

_TRAINING = """
Counting is asked in {phrasings} ways: by class, by group ("curves", "polygons", "numbers") or of all objects,
each with and without a box that points at one of those meant.

## Training

- Data: seed {seed}, split `train`, {images:,} scenes, each seen once, up to {per_image} questions a scene
  packed behind one image. Splits share no layout and no handwriting, by construction.
- First part: {tower_steps:,} steps of the tower alone, on the dense loss. Second part: {steps:,} steps of the
  whole model, the first {align_steps:,} of them with the alignment loss.
- {batch} images a step over {ranks} CPU processes; Muon for matrices (rate {matrix_lr}, weight decay
  {weight_decay}), AdamW for the rest (rate {other_lr}); in each part {warmup} steps of warm-up, and the last
  {decay:.0%} falling in a line: in the first to {tower_share} of the rate, in the second to zero. The tower's
  matrices keep that factor of {tower_share} in the second part. fp32; no dropout.
- The patch embedding starts as whitened principal components of training patches, positions as sines.
- Loss of the second part: answer + {end} × end token + {dense} × dense + {align} × alignment.

### What is there by construction

Finding any of this with a probe, a lens or an ablation is no discovery: it was *put there*.

- **What image tokens hold.** Two auxiliary losses stand in for the pretraining that a full-size LLaVA brings
  along. *Dense* (for CLIP), all the time: linear readers on the tower's output must tell each cell's class,
  colour, place (row and column), the digit it shows, whether a box is drawn around its object, and whether it
  is the one cell that marks an object. *Alignment* (for LLaVA's first stage), for the {align_steps:,} steps
  named above and then no more: a projected image token on an object must lie nearer to the word embedding of
  its class than to those of other classes, and likewise for its colour and, on a digit, for its number, whose
  word also answers counting questions. The curve's column says what is left of that.
- **Where the text reads.** Of {images_drawn} training images, the text may read
  {opened}.
  Reading in later layers was in part made by this closing, and so was what the barred model says.

Counting the marked cells, telling the main object from the others, finding the object that is named or boxed,
the second hop, and which heads carry the image into the text come from the answer loss alone.

### Curve

Means over the {every} steps before each row, on scenes not seen before; accuracy leaves out images that are
never open, and no question is asked in the first part.

| step | answer loss | dense | alignment | {names} |
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
    head = _HEAD.format(
        name=folder.name,
        parameters=parameters,
        classes=len(CLASSES),
        families=len(TEMPLATES),
        n=f"{scores[0].n if scores else 0:,}",
        never=OPEN_FROM.count(NEVER),
        images_drawn=len(OPEN_FROM),
        **settings,
    )
    flags = "".join(
        f" --{name.replace('_', '-')} {settings[name]}" for name in ("tower_steps", "steps", "seed")
    )
    parts = [head, *map(_score_row, scores), _training(settings, curve, points), _RETRAIN.format(flags=flags)]
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
        phrasings=len(PHRASINGS),
        images=(settings["tower_steps"] + settings["steps"]) * settings["batch"],
        per_image=QUESTIONS_PER_IMAGE,
        end=END_WEIGHT,
        dense=DENSE_WEIGHT,
        align=ALIGN_WEIGHT,
        images_drawn=len(OPEN_FROM),
        opened=_opened(),
        every=curve[0]["step"] if curve else 0,
        names=" | ".join(families),
        rule=" | ".join("---" for _ in families),
        **settings,
    )
    last = {round((i + 1) * len(curve) / points) - 1 for i in range(points)}
    rows = [_curve_row(point, settings["tower_steps"]) for i, point in enumerate(curve) if i in last]
    return told + "".join(rows)


def _opened() -> str:
    """How many images are open from which decoder layer on, in words."""
    layers = sorted(set(OPEN_FROM) - {NEVER})
    parts = [f"{OPEN_FROM.count(layer)} from layer {layer} on" for layer in layers]
    return ", ".join(parts) + f" and {OPEN_FROM.count(NEVER)} never"


def _curve_row(point: Mapping[str, Any], tower_steps: int) -> str:
    """One row; the tower's own part asks no questions, so it has nothing but a dense loss."""
    asked = point["step"] > tower_steps
    values = [
        f"{point[name]:.3f}" if asked or name == "dense" else "–" for name in ("answer", "dense", "align")
    ]
    values += [f"{value:.2f}" if asked else "–" for value in point["accuracy"].values()]
    return f"| {point['step']} | " + " | ".join(values) + " |\n"
