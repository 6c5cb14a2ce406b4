"""How the image reaches the answer, one question family of scenes beside the other.

``python -m mmlens.recipes.scenes_survey [--model scenes] [--n 300] [--n-maps 24] [--seed 7] [--out FILE.json]``

1. Per family, accuracy on held-out questions: clean; with all image-to-text attention blocked; and with the image
   open to the text in layers k and above only, for every k. All conditions see the same questions; an answer is
   right if the likeliest next token is the right answer.
2. Head attribution of other held-out questions of each family.
3. Cosines of these maps within and between families.

For 2 every family has scenes of its own (from a seed of its own), so that no picture makes the maps of two
families alike. Main objects, counts and two hops are asked of scenes of one kind each, so their maps may differ
by the scenes as well as by the question.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import typer
import xarray as xr

from mmlens.analyses import blocked_accuracy, head_attribution, map_similarity
from mmlens.datasets import scenes
from mmlens.errors import ConfigError, MMLensError, ResultError
from mmlens.interventions import Block
from mmlens.model import HookedVLM
from mmlens.result import AccuracyResult, AttributionResult, MapSimilarityResult, write_atomically

SPLIT = "heldout"
IN_WORDS = (
    "blocked: no text token reads any image token, in any layer or head; from k: only layers k and above let "
    "text read the image"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenesSurvey:
    """Everything the survey measured.

    Attributes:
        accuracy: per family and condition: ``clean``, ``blocked``, ``from 1``, ``from 2``, …
        attributions: head attribution by family.
        similarity: cosines of these maps.
        seed: of the questions, masks and draws.
    """

    accuracy: AccuracyResult
    attributions: Mapping[str, AttributionResult]
    similarity: MapSimilarityResult
    seed: int

    def figures(self) -> dict[str, Any]:
        """All figures as JSON values: shares of correct answers, thetas in their unit, cosines; null = undefined."""
        info = self.accuracy.info
        seconds = [one.info.seconds for one in (self.accuracy, *self.attributions.values(), self.similarity)]
        return _plain(
            {
                "model": info.model_id,
                "weights": info.weight_fingerprint,
                "dataset": self.accuracy.data.attrs["dataset"],
                "seed": self.seed,
                "accuracy": {name: _shares(one) for name, one in _by_family(self.accuracy)},
                "maps": {name: _map(one) for name, one in self.attributions.items()},
                "similarity": {
                    "score": self.similarity.data.attrs["score"],
                    "cosines": self.similarity.to_pandas().to_dict("records"),
                    "pairs": self.similarity.summary().to_dict("records"),
                },
                "notes": {
                    "conditions": self.accuracy.data.attrs["intervention"],
                    "accuracy": "shares with their 95 % Wilson intervals",
                    "maps": "means over samples; positive = removing the head hurts the answer",
                    **{name: self.similarity.data[name].attrs["description"] for name in ("gap", "p_value")},
                },
                "versions": info.versions,
                "seconds": sum(seconds),
            }
        )

    def tables(self) -> str:
        """The figures as text, for reading."""
        data = self.accuracy.data
        return "\n\n".join(
            [
                f"Accuracy of {self.accuracy.info.model_id} on {data.attrs['dataset']}, in percent (95 % Wilson "
                f"interval).\n{data.attrs['intervention']}.\n\n{_accuracy_table(self.accuracy)}",
                "Head attribution: fit on fresh masks (medians), mean cosine between two samples' maps, strongest "
                f"heads (mean theta).\n\n{_map_table(self.attributions, self.similarity)}",
                f"Mean cosine between the maps of two families.\n\n{_cosine_table(self.similarity)}",
                "Gap: mean cosine within the two families, minus that between them (95 % bootstrap intervals; "
                f"one-sided permutation p, not corrected).\n\n{_pair_table(self.similarity)}",
            ]
        )


def scenes_survey(
    model: HookedVLM,
    *,
    n: int = 300,
    n_maps: int = 24,
    families: Sequence[str] = scenes.FAMILIES,
    n_masks: int | Literal["auto"] = "auto",
    n_boot: int = 1000,
    batch_size: int = 50,
    seed: int = 7,
    progress: bool = True,
) -> ScenesSurvey:
    """Runs the survey.

    Args:
        model: a model that knows the words of scenes.
        n: questions per family for the accuracies.
        n_maps: other questions per family for the maps.
        families: question families, of ``scenes.FAMILIES``.
        n_masks: head masks to fit per question.
        n_boot: bootstrap draws, and random relabellings, for the cosines.
        batch_size: questions run together for the accuracies.
        seed: of the questions, masks and draws.
        progress: whether to show bars.

    Raises:
        ConfigError: an unknown family, no question for the accuracies, or fewer than two for the maps.
        AnswerError: the model cannot say an answer in one token.
    """
    if n < 1 or n_maps < 2 or not families:
        raise ConfigError(
            f"n={n}, n_maps={n_maps} and {len(families)} families are too few: give 1, 2 and 1, or more."
        )
    asked = {name: scenes.prompts(SPLIT, n, family=name, seed=seed) for name in families}
    accuracy = blocked_accuracy(
        model,
        asked,
        conditions=layer_conditions(model.cfg.n_layers),
        intervention=IN_WORDS,
        dataset=f"scenes, {SPLIT} split",
        batch_size=batch_size,
        progress=progress,
    )  # 1
    del asked  # pictures
    attributions = {}
    for name in families:
        own = seed + 1 + scenes.FAMILIES.index(name)
        prompts = scenes.prompts(SPLIT, n_maps, family=name, seed=own)
        attributions[name] = head_attribution(
            model, prompts, n_masks=n_masks, seed=seed, progress=progress
        )  # 2
    similarity = map_similarity(attributions, n_boot=n_boot, n_permutations=n_boot, seed=seed)  # 3
    return ScenesSurvey(accuracy=accuracy, attributions=attributions, similarity=similarity, seed=seed)


def layer_conditions(n_layers: int) -> dict[str, tuple[Block, ...]]:
    """``blocked``, and ``from k`` for every layer k but the first: closed to the image below layer k."""
    closed = {f"from {k}": (Block(src="image", dst="text", layers=range(k)),) for k in range(1, n_layers)}
    return {"blocked": (Block(src="image", dst="text"),), **closed}


# --- as numbers


def _by_family(accuracy: AccuracyResult) -> list[tuple[str, xr.Dataset]]:
    names = accuracy.data["family"].values.tolist()
    return [(str(name), accuracy.data.isel(family=i)) for i, name in enumerate(names)]


def _shares(data: xr.Dataset) -> dict[str, Any]:
    """One family's accuracies."""
    shares, ends = data["accuracy"].values.tolist(), data["interval"].values.tolist()
    conditions = {
        str(name): {"accuracy": share, "lower": lower, "upper": upper}
        for name, share, (lower, upper) in zip(data["condition"].values.tolist(), shares, ends, strict=True)
    }
    return {"n": data["n"].item(), "majority": data["majority"].item(), "conditions": conditions}


def _map(result: AttributionResult) -> dict[str, Any]:
    """One family's mean map, how well it fits, and what it was made from."""
    summary = result.summary()
    fit = {
        name: result.data[name].median().item()
        for name in ("r2", "heldout_pearson", "split_half", "reliability", "n_masks", "clean", "ablated")
    }
    return {
        "n": result.n,
        **{name: result.data.attrs[name] for name in ("metric", "unit", "baseline")},
        "medians": fit,
        "interval": summary.attrs["interval"],
        **{name: summary[name].values.tolist() for name in ("theta", "lower", "upper")},
        "theta_by_sample": result.theta.values.tolist(),
    }


def _plain(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- as text


def _accuracy_table(accuracy: AccuracyResult) -> str:
    rows = {}
    for name, data in _by_family(accuracy):
        found = _shares(data)
        rows[name] = {"n": found["n"], "majority": f"{100 * found['majority']:.0f}"} | {
            condition: "{:.0f} ({:.0f}-{:.0f})".format(*(100 * share for share in shares.values()))
            for condition, shares in found["conditions"].items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").to_string()


def _map_table(attributions: Mapping[str, AttributionResult], similarity: MapSimilarityResult) -> str:
    rows = {}
    for i, (name, result) in enumerate(attributions.items()):
        own = similarity.data.isel(group=i, group_other=i)
        heads = [
            f"L{one['layer']}H{one['head']} {one['theta']:+.2f}" for one in result.top(4).to_dict("records")
        ]
        rows[name] = {
            "n": result.n,
            "R²": f"{result.r2.median().item():.2f}",
            "reliability": f"{result.data['reliability'].median().item():.2f}",
            "cosine within": _with_ends(own["cosine"].item(), *own["cosine_interval"].values.tolist()),
            "strongest heads": ", ".join(heads),
        }
    return pd.DataFrame.from_dict(rows, orient="index").to_string()


def _cosine_table(similarity: MapSimilarityResult) -> str:
    cosine, groups = similarity.data["cosine"].values, similarity.groups
    return pd.DataFrame(cosine, groups, groups).map("{:.2f}".format).to_string()


def _pair_table(similarity: MapSimilarityResult) -> str:
    rows = [
        {
            "families": f"{one['first']}, {one['second']}",
            "within": f"{one['within_first']:.2f}, {one['within_second']:.2f}",
            "between": f"{one['between']:.2f}",
            "gap": _with_ends(one["gap"], one["lower"], one["upper"]),
            "p": f"{one['p_value']:.2g}",
        }
        for one in similarity.summary().to_dict("records")
    ]
    return pd.DataFrame(rows).to_string(index=False) if rows else "one family: nothing to compare"


def _with_ends(value: float, lower: float, upper: float) -> str:
    return f"{value:.2f} [{lower:.2f}, {upper:.2f}]"


# --- command line


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mmlens.recipes.scenes_survey",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="scenes", help="embedded name, local folder or hub id")
    parser.add_argument("--n", type=int, default=300, help="questions per family for the accuracies")
    parser.add_argument("--n-maps", type=int, default=24, help="other questions per family for the maps")
    parser.add_argument("--families", nargs="+", choices=scenes.FAMILIES, default=scenes.FAMILIES)
    parser.add_argument("--seed", type=int, default=7, help="of the questions, masks and draws")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Parse the command line, run the survey, print its tables and write its figures."""
    chosen = _arguments(given)
    try:
        if chosen.out is not None and not chosen.out.parent.is_dir():
            raise ResultError(f"the folder of --out {chosen.out} does not exist. Create it first.")
        survey = scenes_survey(
            HookedVLM.from_pretrained(chosen.model),
            n=chosen.n,
            n_maps=chosen.n_maps,
            families=chosen.families,
            seed=chosen.seed,
            progress=chosen.progress,
        )
        typer.echo(survey.tables())
        if chosen.out is not None:
            text = json.dumps(survey.figures(), indent=1, allow_nan=False, ensure_ascii=False)
            typer.echo(f"\nfigures: {write_atomically(chosen.out, text.encode())}")
    except MMLensError as error:
        raise SystemExit(f"mmlens: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
