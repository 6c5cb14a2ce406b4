"""What the numbers say, in plain words: headline cards and the sentences around the figures."""

from dataclasses import dataclass

import numpy as np

from mmlens.plots.theme import number, sentence
from mmlens.result import AccuracyResult, AttributionResult, FaithfulnessResult

WEAK_R2 = 0.5
"""Below this mean held-out R² the page says that the attribution must not be trusted."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline number.

    Attributes:
        value: the number as text.
        label: what it is.
        text: what it means.
        weak: whether it speaks against trusting the attribution.
    """

    value: str
    label: str
    text: str
    weak: bool = False


def headline_cards(
    attribution: AttributionResult,
    comparisons: FaithfulnessResult | None,
    control: AttributionResult | None,
    accuracy: AccuracyResult | None,
) -> list[Card]:
    """The headline numbers of a report, most important first."""
    cards = [_fit_card(attribution), _heads_card(attribution), _effect_card(attribution)]
    if comparisons is not None:
        cards.insert(2, _reach_card(comparisons, n_heads(attribution)))
    if control is not None:
        cards.append(_control_card(attribution, control))
    if accuracy is not None:
        cards += _accuracy_cards(accuracy)
    return cards


def n_heads(result: AttributionResult) -> int:
    """Heads of the model, over all layers."""
    return result.data.sizes["layer"] * result.data.sizes["head"]


def sure_heads(result: AttributionResult) -> int:
    """Heads whose interval of the mean excludes 0."""
    view = result.summary()
    return int(((view["lower"] > 0) | (view["upper"] < 0)).sum())


def mean_text(values: np.ndarray, digits: int = 2) -> str:
    """Mean of the defined values, or ``undefined``."""
    known = values[np.isfinite(values)]
    return number(known.mean(), f".{digits}f") if known.size else "undefined"


def effect(result: AttributionResult) -> float:
    """Clean metric minus the metric with every head ablated: mean over samples."""
    return float((result.data["clean"] - result.data["ablated"]).mean())


def _fit_card(result: AttributionResult) -> Card:
    known = result.r2.values[np.isfinite(result.r2.values)]
    masks = sorted({int(n) for n in result.data["n_masks"].values})
    drawn = f"{masks[0]}" if len(masks) == 1 else f"{masks[0]} to {masks[-1]}"
    if not known.size:
        return Card(
            value="undefined", label="held-out R²", text="The metric never changed between masks.", weak=True
        )
    weak = float(known.mean()) < WEAK_R2
    spread = f"range {number(known.min())} to {number(known.max())}, " if len(known) > 1 else ""
    text = (
        f"Fitted on {drawn} random sets of heads per sample and tested on fresh ones: the sum of the kept "
        f"heads' attributions explains this share of the variation ({spread}Pearson "
        f"{mean_text(result.heldout_pearson.values)}).{_agreement(result)}{_cost(result)}"
    )
    if weak:
        text += " That is weak: heads do not simply add up here, so read the map as a hint only."
    return Card(value=number(known.mean()), label="held-out R²", text=text, weak=weak)


def _agreement(result: AttributionResult) -> str:
    """How well two halves of the masks agree, if that was measured."""
    if "split_half" not in result.data:
        return ""
    return f" Maps from two halves of the masks correlate with r = {mean_text(result.data['split_half'].values)}."


def _cost(result: AttributionResult) -> str:
    """Time and speed, if they were recorded."""
    if result.seconds is None or result.masks_per_second is None:
        return ""
    return f" It took {number(result.seconds)} s, {result.masks_per_second:.0f} masks per second."


def _heads_card(result: AttributionResult) -> Card:
    over = "masks" if result.n == 1 else "samples"
    return Card(
        value=f"{sure_heads(result)} of {n_heads(result)}",
        label="heads that matter",
        text=f"Heads whose 95 % interval (over {over}) excludes 0. By chance alone about "
        f"{0.05 * n_heads(result):.0f} would.",
    )


def _reach_card(comparisons: FaithfulnessResult, heads: int) -> Card:
    method = comparisons.methods[0]
    k80 = float(comparisons.data["k80"][0])
    random = comparisons.data.get("random_k80")
    beside = ""
    if random is not None:
        reached = random.values[np.isfinite(random.values)]
        beside = (
            f" Random heads need {np.median(reached):.0f}." if reached.size else " Random heads never do."
        )
    if np.isnan(k80):
        return Card(
            value="never",
            label="heads that suffice",
            text=f"No tested set of {method} reaches 80 %.",
            weak=True,
        )
    return Card(
        value=f"{k80:.0f} of {heads}",
        label="heads that suffice",
        text=f"If only these top heads by {method} may read the image, 80 % of its effect is back.{beside}",
    )


def _effect_card(result: AttributionResult) -> Card:
    attrs = result.data.attrs
    clean, ablated = (float(result.data[name].mean()) for name in ("clean", "ablated"))
    return Card(
        value=f"{number(effect(result), '+.2f')} {attrs['unit']}",
        label="effect of the image",
        text=f"Mean {attrs['metric']}: {number(clean)} as it is, {number(ablated)} when no head reads the "
        f"image ({attrs['baseline']} instead).",
    )


def _control_card(attribution: AttributionResult, control: AttributionResult) -> Card:
    unit = control.data.attrs["unit"]
    return Card(
        value=f"{number(effect(control), '+.2f')} {unit}",
        label="effect with random weights",
        text=f"The same method on an untrained model: held-out R² {mean_text(control.r2.values)} (trained "
        f"{mean_text(attribution.r2.values)}), {sure_heads(control)} of {n_heads(control)} heads exclude 0.",
    )


def _accuracy_cards(accuracy: AccuracyResult) -> list[Card]:
    means = accuracy.data["accuracy"].mean("family")
    majority = float(accuracy.data["majority"].mean())
    conditions = [str(name) for name in means["condition"].values.tolist()]
    clean, others = float(means[0]), conditions[1:]
    return [
        Card(
            value=f"{float(means.sel(condition=name)):.2f}",
            label=f"accuracy, {name}",
            text=f"{sentence(accuracy.data.attrs['intervention'])}: {clean:.2f} becomes "
            f"{float(means.sel(condition=name)):.2f}. Guessing the most frequent answer scores "
            f"{majority:.2f}.",
        )
        for name in others
    ]
