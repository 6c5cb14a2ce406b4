"""Does the ranking of head attribution hold? ``python -m mmlens.recipes.head_evaluation``.

1. Per question family, rank all heads by every method, on pairs of scenes that differ in the answer (gradients need
   the second picture; all other methods read the first only).
2. Faithfulness and completeness of the rankings on held-out scenes, beside random heads of the same layers; leads of
   head attribution over each method with paired intervals (:mod:`mmlens.result.paired_leads`).
3. The same for the model with random weights.
4. Are maps alike within a class, and is that the class or its looks (:mod:`mmlens.recipes.map_claims`)?
5. What a ranking is worth on other prompts, in other families and in other models
   (:mod:`mmlens.recipes.transfer_table`).

Prints tables in Markdown. The claims to test are those of Kim et al. 2025 (arXiv 2509.17588): head attribution needs
the fewest heads; its maps are alike within a semantic class and not within a visual appearance. The comparison with
gradients, the paired intervals and step 5 are ours.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import typer

from mmlens.analyses import (
    attention_weight,
    attribution_patching,
    faithfulness,
    gate_attribution,
    head_attribution,
    single_head_ablation,
)
from mmlens.datasets import scenes
from mmlens.errors import DesignError, ResultError
from mmlens.inputs import Prompt
from mmlens.model import HookedVLM
from mmlens.recipes.map_claims import appearance_table, class_table
from mmlens.recipes.markdown import markdown_table
from mmlens.recipes.transfer_table import transfer_tables
from mmlens.result import FaithfulnessResult
from mmlens.result.paired_leads import RANDOM, paired_leads

MODEL, OTHER, TWIN = "scenes", "scenes-b", "scenes-random"
CHANGES = {"main": "object", "colour": "colour", "count": "count"}
"""Question family → what the second scene of its pairs has otherwise."""
N_FIT, N_HELDOUT, N_RANDOM, PER_CLASS, N_STYLED, SEED = 24, 48, 10, 6, 20, 0
QUIET: Mapping[str, Any] = {"progress": False}
HEADER = (
    "method",
    "area F",
    "lead [95 %]",
    "heads to .8, .9",
    "heads saved at .8 [95 %]",
    "area C",
    "lead [95 %]",
    "heads to .8, .9",
)

Pairs = Sequence[tuple[Prompt, Prompt]]


def method_scores(model: HookedVLM, pairs: Pairs, *, seed: int = SEED) -> dict[str, Any]:
    """Step 1: method → scores of every head; head attribution first.

    Args:
        model: the model.
        pairs: scenes and their altered counterparts.
        seed: of head masks.
    """
    first = [one for one, _ in pairs]
    patched = {
        "metric": "logit",
        "positions": "text",
        "small_gap": "leave_out",
        "correction": "none",
        "n_boot": 1,
    }
    found = {
        "head attribution": head_attribution(model, first, n_heldout=16, seed=seed, **QUIET),
        "single-head ablation": single_head_ablation(model, first, seed=seed, **QUIET),
        "attention weight": attention_weight(model, first, **QUIET),
    }
    estimates = {
        "gates, path": gate_attribution(model, first, at="path", **QUIET),
        "gates, kept": gate_attribution(model, first, at="kept", **QUIET),
        "attribution patching": attribution_patching(
            model, first, [other for _, other in pairs], **patched, **QUIET
        ),
    }
    return found | {name: one.effect.mean("sample").values for name, one in estimates.items()}


def curves(
    model: HookedVLM, family: str, *, n_fit: int, n_heldout: int, n_random: int, seed: int
) -> FaithfulnessResult:
    """Steps 1 and 2 for one family.

    Args:
        model: the model.
        family: a key of ``CHANGES``.
        n_fit: pairs behind the rankings.
        n_heldout: prompts that they are judged on.
        n_random: random rankings.
        seed: of scenes, masks and draws.

    Raises:
        DesignError: the image does not help these answers on average.
    """
    heldout = scenes.prompts("heldout", n_heldout, family=family, seed=seed)
    any_order = np.zeros((model.cfg.n_layers, model.cfg.n_heads))
    faithfulness(model, heldout, {"any": any_order}, sizes=[0], n_random=1, n_boot=1, **QUIET)  # raises early
    pairs = scenes.paired_prompts("attribution", n_fit, change=CHANGES[family], family=family, seed=seed)
    scores = method_scores(model, pairs, seed=seed)
    return faithfulness(model, heldout, scores, n_random=n_random, seed=seed, **QUIET)


def curve_table(result: FaithfulnessResult, *, n_boot: int = 2000, seed: int = SEED) -> str:
    """Step 2 in Markdown: a row per method, and one for the random rankings. Bold leads exclude 0.

    Args:
        result: curves, head attribution first.
        n_boot: bootstrap draws over prompts.
        seed: of the draws.
    """
    asked: dict[str, Any] = {"n_boot": n_boot, "seed": seed}
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for curve in ("faithfulness", "completeness"):
        for quantity in ("area", "k80", "k90"):
            table = paired_leads(result, curve=curve, quantity=quantity, **asked).to_dict("records")
            found[curve, quantity] = {row["method"]: {str(k): v for k, v in row.items()} for row in table}
    rows = []
    for i, name in enumerate(found["faithfulness", "area"]):
        cells = [name]
        for curve in ("faithfulness", "completeness"):
            area, k80, k90 = (found[curve, quantity][name] for quantity in ("area", "k80", "k90"))
            spread = _spread(result, curve) if name == RANDOM else ""
            cells += [f"{area['value']:.3f}{spread}", _lead(area, "{:+.3f}") if i else ""]
            cells += [f"{k80['value']:g}, {k90['value']:g}"]
            if curve == "faithfulness":
                cells += [_lead(k80, "{:+g}") if i else ""]
        rows.append(cells)
    return markdown_table(HEADER, rows)


def _lead(row: Mapping[str, Any], form: str) -> str:
    value, lower, upper = (
        form.format(row[name] + 0.0).replace("-", "−") for name in ("lead", "lower", "upper")
    )
    text = f"{value} [{lower}, {upper}]"
    return f"**{text}**" if row["decided"] else text


def _spread(result: FaithfulnessResult, curve: str) -> str:
    """Quartiles of the random rankings' areas."""
    areas = result.data[f"random_auc_{curve}"].mean("sample").values
    low, high = np.quantile(areas, [0.25, 0.75])
    return f" ({low:.3f}–{high:.3f})"


def part_of_methods(
    names: Sequence[str], sizes: Mapping[str, int], *, n_boot: int = 2000, seed: int = SEED
) -> str:
    """Steps 1 to 3: a table per model and family, or a sentence where shares of the effect mean nothing.

    Args:
        names: models.
        sizes: ``n_fit``, ``n_heldout``, ``n_random`` of :func:`curves`.
        n_boot: bootstrap draws over prompts.
        seed: of scenes, masks and draws.
    """
    parts = []
    for name in names:
        model = HookedVLM.from_pretrained(name)
        for family in CHANGES:
            title = (
                f"`{name}`, {family}, rankings from {sizes['n_fit']} prompts, judged on {sizes['n_heldout']}"
            )
            try:
                result = curves(model, family, seed=seed, **sizes)
                effect = float(result.data["effect"].mean())
                table = curve_table(result, n_boot=n_boot, seed=seed)
                parts.append(f"{title}; effect of all heads {effect:.2f} logits:\n\n{table}")
            except (DesignError, ResultError) as error:
                parts.append(f"{title}: no curves; {str(error).split('. ')[0]}.")
    return "\n\n".join(parts)


def report(
    *,
    sizes: Mapping[str, int],
    per_class: int = PER_CLASS,
    n_styled: int = N_STYLED,
    n_boot: int = 2000,
    seed: int = SEED,
    parts: Sequence[str] = ("methods", "maps", "transfer"),
) -> str:
    """Steps 1 to 5 in Markdown.

    Args:
        sizes: ``n_fit``, ``n_heldout`` and ``n_random``.
        per_class: prompts of each class.
        n_styled: scenes that are restyled.
        n_boot: bootstrap draws, and permutations.
        seed: of everything.
        parts: which of methods, maps, transfer.
    """
    asked: dict[str, Any] = {"n_boot": n_boot, "seed": seed}
    pair = (MODEL, TWIN)
    made = {
        "methods": lambda: part_of_methods(pair, sizes, **asked),
        "maps": lambda: "\n\n".join(
            (class_table(pair, per_class=per_class, **asked), appearance_table(pair, n=n_styled, **asked))
        ),
        "transfer": lambda: transfer_tables(MODEL, (OTHER, TWIN), **sizes, **asked),
    }
    return "\n\n".join(made[name]() for name in parts)


def main(given: list[str] | None = None) -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m mmlens.recipes.head_evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fit", type=int, default=N_FIT, help="prompts of each family behind the rankings")
    parser.add_argument("--heldout", type=int, default=N_HELDOUT, help="prompts that rankings are judged on")
    parser.add_argument("--random", type=int, default=N_RANDOM, help="random rankings")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="prompts of each class")
    parser.add_argument("--styled", type=int, default=N_STYLED, help="scenes that are restyled")
    parser.add_argument("--boot", type=int, default=2000, help="bootstrap draws, and permutations")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of scenes, masks and draws")
    parser.add_argument(
        "--parts", nargs="+", choices=("methods", "maps", "transfer"), default=("methods", "maps", "transfer")
    )
    chosen = parser.parse_args(given)
    sizes = {"n_fit": chosen.fit, "n_heldout": chosen.heldout, "n_random": chosen.random}
    options = {"per_class": chosen.per_class, "n_styled": chosen.styled, "n_boot": chosen.boot}
    typer.echo(report(sizes=sizes, seed=chosen.seed, parts=chosen.parts, **options))


if __name__ == "__main__":
    main()
