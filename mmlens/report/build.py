"""Builds the report of a head attribution and writes it.

1. Check that all results belong together.
2. Draw the figures and set the tables.
3. Fill the template; everything that is not ours is escaped.
4. Write the file atomically.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mmlens import plots
from mmlens.errors import ResultError
from mmlens.report import tables
from mmlens.report.figures import EmbeddedFigure, embed
from mmlens.report.prose import headline_cards
from mmlens.result import AccuracyResult, AttributionResult, FaithfulnessResult, HeadScoreResult, RunInfo
from mmlens.result.archive import write_atomically

MAX_SAMPLES = 12
"""Samples whose prompt and tokens are printed; figures and numbers use all of them."""

CSP = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)
"""Nothing is loaded from anywhere: what the page needs is in the page."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything one report is made of; see ``write_report``."""

    attribution: AttributionResult
    comparisons: FaithfulnessResult | None
    scores: tuple[HeadScoreResult, ...]
    control: AttributionResult | None
    control_comparisons: FaithfulnessResult | None
    accuracy: AccuracyResult | None
    control_accuracy: AccuracyResult | None

    def __post_init__(self) -> None:
        _same_weights(self.attribution, (self.comparisons, *self.scores, self.accuracy), "attribution")
        alone = self.control_comparisons or self.control_accuracy
        if self.control is None:
            if alone is not None:
                raise ResultError(f"a {alone.kind} result of a control was given without the control itself.")
            return
        _same_weights(self.control, (self.control_comparisons, self.control_accuracy), "control")
        if self.control.info.weight_fingerprint == self.attribution.info.weight_fingerprint:
            raise ResultError(
                "the control has the same weights as the model itself, so it controls nothing. Give the "
                "attribution of a model with random weights."
            )


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    attribution: AttributionResult,
    comparisons: FaithfulnessResult | None = None,
    scores: Sequence[HeadScoreResult] = (),
    control: AttributionResult | None = None,
    control_comparisons: FaithfulnessResult | None = None,
    accuracy: AccuracyResult | None = None,
    control_accuracy: AccuracyResult | None = None,
    summary: str | None = None,
    remarks: Sequence[str] = (),
    command: str | None = None,
    data_file: str | None = None,
) -> Path:
    """Writes one self-contained HTML page: it opens offline, loads nothing, and shows untrusted text as text.

    Args:
        path: file to write; its folder must exist. It is returned.
        title: heading of the page, plain text.
        attribution: the result to report.
        comparisons: faithfulness and completeness curves of the same model.
        scores: other head scores of the same model, each drawn against the attribution.
        control: the same attribution on a model with random weights.
        control_comparisons: curves of the control.
        accuracy: accuracy of the same model with and without the image's path into the text.
        control_accuracy: the same for the control.
        summary: what the reader should know first, plain text.
        remarks: what could not be measured and why, plain text; shown with the control.
        command: command line that makes this report again; by default the one in the provenance.
        data_file: name of the file the attribution was saved to, to be mentioned.

    Raises:
        ResultError: the results belong to different weights, or the file cannot be written (an older one
            stays).
    """
    evidence = Evidence(
        attribution=attribution,
        comparisons=comparisons,
        scores=tuple(scores),
        control=control,
        control_comparisons=control_comparisons,
        accuracy=accuracy,
        control_accuracy=control_accuracy,
    )
    texts = {"title": title, "summary": summary, "remarks": remarks, "data_file": data_file}
    page = _render(evidence, command=command or attribution.info.command, **texts)
    return write_atomically(path, page.encode("utf-8", errors="replace"))


def _render(evidence: Evidence, **texts: Any) -> str:
    """The page as text."""
    main = evidence.attribution
    template = _environment().get_template("report.html.j2")
    return template.render(
        **texts,
        csp=CSP,
        plotly=Markup(get_plotlyjs()),  # trusted: it comes with the plotly package
        result=main,
        cards=headline_cards(main, evidence.comparisons, evidence.control, evidence.accuracy),
        samples=tables.sample_cards(main, MAX_SAMPLES),
        figures=_figures(evidence),
        **_tables(evidence),
    )


def _same_weights(first: AttributionResult, others: Sequence[Any], what: str) -> None:
    """All results were made with the same weights."""
    for other in others:
        if other is not None and other.info.weight_fingerprint != first.info.weight_fingerprint:
            raise ResultError(
                f"the {other.kind} result belongs to weights {other.info.weight_fingerprint} "
                f"({other.info.model_id}), the {what} to {first.info.weight_fingerprint} "
                f"({first.info.model_id}). Give results of one model."
            )


def _environment() -> jinja2.Environment:
    """Templates of this package; everything is escaped, and a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mmlens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figures(evidence: Evidence) -> dict[str, list[EmbeddedFigure]]:
    """The figures of every section, in reading order."""
    main, curves, control = evidence.attribution, evidence.comparisons, evidence.control
    sections: dict[str, list[go.Figure]] = {
        "map": [plots.head_map(main)],
        "image": [],
        "fit": [],
        "curves": [],
    }
    if "cell_weight" in main.data:
        sections["image"] = [plots.image_overlay(main)]
    if "heldout_measured" in main.data:
        sections["fit"] = [plots.calibration(main)]
    if curves is not None:
        sections["curves"] = [plots.curves(curves), plots.curves(curves, which="completeness")]
    sections["scores"] = [plots.agreement(main, score) for score in evidence.scores]
    sections["control"] = _control_figures(evidence) if control is not None else []
    sections["accuracy"] = _accuracy_figures(evidence)
    return {
        section: [embed(figure, f"figure-{section}-{i}") for i, figure in enumerate(drawn)]
        for section, drawn in sections.items()
    }


def _control_figures(evidence: Evidence) -> list[go.Figure]:
    """Figures of merit of both models, and both maps on one colour scale."""
    main, control = evidence.attribution, evidence.control
    if control is None:
        return []
    limit = max(float(abs(result.theta.mean("sample")).max()) for result in (main, control)) or None
    bars = plots.control_bars(
        main, control, comparisons=evidence.comparisons, control_comparisons=evidence.control_comparisons
    )
    named = ((main, f"Mean map: {main.info.model_id}"), (control, f"Mean map: {control.info.model_id}"))
    return [bars, *(plots.head_map(result, title=name, limit=limit, menu=False) for result, name in named)]


def _accuracy_figures(evidence: Evidence) -> list[go.Figure]:
    """Accuracy of the model and, beside it, of the control."""
    found = [result for result in (evidence.accuracy, evidence.control_accuracy) if result is not None]
    return [plots.accuracy_bars({result.info.model_id: result for result in found})] if found else []


def _tables(evidence: Evidence) -> dict[str, Any]:
    """The tables of every section; None where there is nothing to show."""
    main, curves, control = evidence.attribution, evidence.comparisons, evidence.control
    infos: list[tuple[str, RunInfo]] = [("this model", main.info)]
    if control is not None:
        infos.append(("control", control.info))
    accuracies = [result for result in (evidence.accuracy, evidence.control_accuracy) if result is not None]
    pairs = [(main, curves)]
    if control is not None:
        pairs.append((control, evidence.control_comparisons))
    return {
        "top_table": tables.top_heads(main),
        "curve_table": None if curves is None else tables.curve_table(curves),
        "control_table": None if control is None else tables.control_table(pairs),
        "accuracy_table": tables.accuracy_table(accuracies) if accuracies else None,
        "provenance": tables.provenance_table(infos),
    }
