"""The model card of a planted model: which heads carry, how that was made so, and the measured proof."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlens.pretrained.plantings import Planting

_TEXT = """\
---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# planted-{name}: a small LLaVA whose image→text heads are known

{about} An ordinary LLaVA-1.5 folder, made from the `scenes` model: the same tower, projector, tokenizer and
questions. Only the heads below can read the image from the text; for every other head it is a property of
the weights (`mmlens.pretrained.gates`), not of a mask, that its softmax gives the image exactly nothing.

| layer | head | part |
| --- | --- | --- |
{heads}
Carriers read the image. Relays never do: the final token reads the role tag through them, and through nothing
else. Decoys have the queries and keys of a carrier of their layer, so they look exactly where it looks, and
no output weights.

Trained by `python -m mmlens.pretrained.plant {name} --out RUN --folder planted-{name}` (the decoder only, on the
answer loss), measured by `python -m mmlens.recipes.planted_truth planted-{name}`.

## Accuracy

Held-out scenes, {n_accuracy} a question family. "Planted only": every other head's image→text attention is
closed. "Without": that of the planted heads is closed.

| family | accuracy | planted only | without | majority |
| --- | --- | --- | --- | --- |
{claimed}
Claimed are families answered at {bar} or better (of the redundant planting, only those that any one head
answers nearly as well). The others, for the record:

| family | accuracy | planted only | without | majority |
| --- | --- | --- | --- | --- |
{others}
## Proof

{proof}
`truth.mmlens` (a `mmlens.PlantedTruth`) holds the answer's logit under every subset of these heads, prompt by
prompt, for both meanings of "closed", and so exact effects, interactions, Shapley and Banzhaf values.
"""


def write_planted_card(
    folder: Path,
    chosen: Planting,
    claimed: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
    *,
    bar: float = 0.8,
) -> None:
    """Write ``README.md`` into the folder.

    Args:
        folder: The model's folder.
        chosen: Its planting.
        claimed: Family → full, planted-only and unplanted-only accuracy, and chance.
        settings: Settings of the truth: ``n_accuracy``, ``not_claimed`` and ``proof``.
        bar: Accuracy from which on a family is claimed.
    """
    heads = "".join(f"| {head.layer} | {head.head} | {head.part} |\n" for head in chosen.heads)
    proof = "".join(f"- {name}: {value:.3g}\n" for name, value in settings["proof"].items())
    columns = ("full", "planted_only", "unplanted_only", "chance")
    others = {family: [shares[c] for c in columns] for family, shares in settings["not_claimed"].items()}
    alone = "".join(
        f"- {family}: at least {share:.3f} through any one of them alone\n"
        for family, share in settings.get("worst_alone", {}).items()
    )
    text = _TEXT.format(
        name=chosen.name,
        about=chosen.about,
        heads=heads,
        n_accuracy=settings["n_accuracy"],
        claimed=_rows({family: list(shares.values()) for family, shares in claimed.items()}),
        others=_rows(others) or "| none | | | | |\n",
        proof=proof + alone,
        bar=bar,
    )
    (folder / "README.md").write_text(text)


def _rows(table: Mapping[str, list[float]]) -> str:
    return "".join(
        f"| {family} | " + " | ".join(f"{share:.3f}" for share in shares) + " |\n"
        for family, shares in table.items()
    )
