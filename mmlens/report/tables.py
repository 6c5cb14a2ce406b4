"""The tables of a report as plain rows of text; the template escapes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mmlens.plots.pixels import as_data_uri
from mmlens.plots.theme import number
from mmlens.report.prose import effect, mean_text, n_heads, sure_heads
from mmlens.report.tokens import TokenRow, token_rows, visible
from mmlens.result import AccuracyResult, AttributionResult, FaithfulnessResult, RunInfo


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column names, rows of text, and what the table shows."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SampleCard:
    """What was asked of one sample and what came out, as text; ``image`` is a data URI or empty."""

    label: str
    image: str
    question: str
    answer: str
    foil: str
    model_answer: str
    right: bool | None
    metric: str
    fit: str
    tokens: tuple[TokenRow, ...]


def sample_cards(result: AttributionResult, limit: int) -> list[SampleCard]:
    """The first ``limit`` samples of an attribution."""
    return [_sample_card(result, i) for i in range(min(limit, result.n))]


def _sample_card(result: AttributionResult, i: int) -> SampleCard:
    data = result.data.isel(sample=i)
    texts = {name: _coord(data, name) for name in ("question", "answer", "foil", "model_answer")}
    said, wanted = (texts[name].strip().lower() for name in ("model_answer", "answer"))
    rows = token_rows(data["token"].values.tolist(), data["role"].values.tolist()) if "token" in data else []
    unit = result.data.attrs["unit"]
    return SampleCard(
        label=_coord(data, "sample"),
        image=_thumbnail(data),
        right=said == wanted if said and wanted else None,
        metric=f"{number(float(data['clean']))} {unit}; {number(float(data['ablated']))} without the image",
        fit=_fit(data),
        tokens=tuple(rows),
        **{name: visible(text) if text else "" for name, text in texts.items()},
    )


def _fit(data: xr.Dataset) -> str:
    """Evidence for the fit of one sample."""
    halves = f", split-half r {_number(data['split_half'])}" if "split_half" in data else ""
    evidence = f"R² {_number(data['r2'])}, Pearson {_number(data['heldout_pearson'])}{halves}"
    return f"{evidence}; {int(data['n_masks'])} masks"


def _number(value: xr.DataArray) -> str:
    """One value, or ``undefined``."""
    return mean_text(value.values[None])


def _coord(data: xr.Dataset, name: str) -> str:
    """A coordinate of one sample as text; empty if there is none."""
    return str(data.coords[name].item()) if name in data.coords else ""


def _thumbnail(data: xr.Dataset) -> str:
    """The image of one sample as a data URI; empty if there is none."""
    if "image" not in data or not int(data["image_height"]):
        return ""
    return as_data_uri(data["image"].values[: int(data["image_height"]), : int(data["image_width"])])


def top_heads(result: AttributionResult, k: int = 10) -> Table:
    """The strongest heads with their intervals."""
    unit = result.data.attrs["unit"]
    rows = [
        (f"L{layer}H{head}", *(number(value, "+.3f") for value in (theta, lower, upper)))
        for layer, head, theta, lower, upper in result.top(k).itertuples(index=False)
    ]
    caption = f"The {len(rows)} heads with the largest attribution ({result.summary().attrs['interval']})."
    return Table(caption=caption, columns=("head", unit, "lower", "upper"), rows=tuple(rows))


def control_table(models: Sequence[tuple[AttributionResult, FaithfulnessResult | None]]) -> Table:
    """One row per model: fit, effect and areas."""
    rows = [_control_row(attribution, curves) for attribution, curves in models]
    columns = (
        "model",
        "effect of the image",
        "held-out R²",
        "held-out Pearson",
        "heads that matter",
        "areas",
    )
    caption = "Means over samples. Areas: under the faithfulness and completeness curves of the first method."
    return Table(caption=caption, columns=columns, rows=tuple(rows))


def _control_row(result: AttributionResult, curves: FaithfulnessResult | None) -> tuple[str, ...]:
    areas = "not measured"
    if curves is not None:
        first = curves.data.isel(method=0)
        areas = " and ".join(
            mean_text(first[f"auc_{name}"].values) for name in ("faithfulness", "completeness")
        )
    return (
        result.info.model_id,
        f"{number(effect(result), '+.3f')} {result.data.attrs['unit']}",
        mean_text(result.r2.values),
        mean_text(result.heldout_pearson.values),
        f"{sure_heads(result)} of {n_heads(result)}",
        areas,
    )


def curve_table(comparisons: FaithfulnessResult) -> Table:
    """One row per method and one for random heads: areas and how many heads reach 0.8 and 0.9."""
    data = comparisons.data
    rows = []
    for i, method in enumerate(comparisons.methods):
        areas = [
            mean_text(data[f"auc_{name}"].values[i]) + _bounds(data.get(f"auc_{name}_interval"), i)
            for name in ("faithfulness", "completeness")
        ]
        rows.append((method, *areas, *(_heads(data[name].values[i : i + 1]) for name in ("k80", "k90"))))
    if "random_auc_faithfulness" in data:
        areas = [_area(data.get(f"random_auc_{name}")) for name in ("faithfulness", "completeness")]
        reach = [
            _heads(data[n].values) if n in data else "not measured" for n in ("random_k80", "random_k90")
        ]
        rows.append(("random heads (median)", *areas, *reach))
    columns = ("method", "faithfulness area", "completeness area", "heads for 0.8", "heads for 0.9")
    caption = f"Means over n = {comparisons.n} samples; 1 is best for areas, fewer is better for heads."
    if "auc_faithfulness_lead_interval" in data:
        caption += f" Brackets: 95 % bootstrap interval over samples.{_leads(comparisons)}"
    return Table(caption=caption, columns=columns, rows=tuple(rows))


def _bounds(intervals: xr.DataArray | None, i: int) -> str:
    return "" if intervals is None else " [{:.2f}, {:.2f}]".format(*intervals.values[i])


def _leads(comparisons: FaithfulnessResult) -> str:
    """How far the first method's areas lead the others', paired by sample, with intervals."""
    data, methods = comparisons.data, comparisons.methods
    text = ""
    for i, method in enumerate(methods[1:], start=1):
        parts = []
        for name in ("faithfulness", "completeness"):
            area = data[f"auc_{name}"].mean("sample").values
            low, high = data[f"auc_{name}_lead_interval"].values[i]
            parts.append(f"{area[0] - area[i]:+.3f} [{low:+.3f}, {high:+.3f}]")
        text += f" Lead of {methods[0]} over {method}: {parts[0]} and {parts[1]}."
    return text


def _area(values: xr.DataArray | None) -> str:
    return "not measured" if values is None else f"{float(values.mean('sample').median()):.2f}"


def _heads(counts: np.ndarray) -> str:
    """Median count of heads; sets that never reach the threshold count as infinitely many."""
    middle = float(np.median(np.where(np.isfinite(counts), counts, np.inf)))
    return f"{middle:.0f}" if np.isfinite(middle) else "never"


def accuracy_table(models: Sequence[AccuracyResult]) -> Table:
    """One row per model and question family: accuracy of every condition, majority rate, n."""
    conditions = [str(name) for name in models[0].data["condition"].values.tolist()]
    rows = []
    for result in models:
        for i, family in enumerate(result.data["family"].values.tolist()):
            data = result.data.isel(family=i)
            shares = [_share(data, str(name)) for name in result.data["condition"].values.tolist()]
            rows.append(
                (result.info.model_id, family, *shares, f"{float(data['majority']):.3f}", str(int(data["n"])))
            )
    attrs = models[0].data.attrs
    caption = f"Accuracy on {attrs['dataset']}; not clean: {attrs['intervention']}. Brackets: 95 % interval."
    columns = ("model", "questions", *conditions, "majority rate", "n")
    return Table(caption=caption, columns=columns, rows=tuple(rows))


def _share(data: xr.Dataset, condition: str) -> str:
    text = f"{float(data['accuracy'].sel(condition=condition)):.3f}"
    if "interval" in data:
        low, high = data["interval"].sel(condition=condition).values
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def provenance_table(infos: Sequence[tuple[str, RunInfo]]) -> Table:
    """One row per field, one column per run."""
    columns = [dict(info.rows()) for _, info in infos]
    fields = list(dict.fromkeys(field for column in columns for field in column))
    rows = tuple((field, *(column.get(field, "") for column in columns)) for field in fields)
    return Table(
        caption="Where the numbers come from.", columns=("field", *(name for name, _ in infos)), rows=rows
    )
