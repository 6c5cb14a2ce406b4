"""The truth of a planted model, measured: ``python -m mmlens.recipes.planted_truth FOLDER``.

1. Accuracy of every question family with all heads, without the unplanted ones, and without the planted ones.
2. A family is claimed if the model answers it well, loses nothing when every unplanted head is closed, and,
   in a redundant planting, loses little when one planted head alone is open.
3. Of every claimed family, the metric under all 2^k subsets of the heads that may read the image, for both
   meanings of "closed".
4. The causal proof: what unplanted heads weigh on the image; in a relay planting also what closing each half of
   the way costs, and what is left when every other way is closed.

The folder then holds ``truth.mmlens``, a ``PlantedTruth``, beside the weights, a card, and checksums of both.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.samples import run_info, sample_generator
from mmlens.datasets import scenes
from mmlens.engine import open_runs
from mmlens.errors import DesignError
from mmlens.inputs import Prompt
from mmlens.interventions import Block, HeadBaseline, HeadMask
from mmlens.metrics import METRICS, answer_ids
from mmlens.model import HookedVLM
from mmlens.pretrained.checksums import seal
from mmlens.pretrained.planted_card import write_planted_card
from mmlens.pretrained.plantings import Planting, planting
from mmlens.result import PlantedTruth

TRUTH = "truth.mmlens"
BASELINES: tuple[HeadBaseline, ...] = ("mean_image_tokens", "knockout")
"""What a closed head reads. Not "zero": a key of zeros is one that a gate does not shun."""
CLAIM_ACCURACY, CLAIM_LOSS, CLAIM_ALONE = 0.8, 0.01, 0.85
BATCH = 50
SEED = 21


def planted_truth(
    model: HookedVLM,
    chosen: Planting,
    *,
    n: int = 60,
    n_accuracy: int = 500,
    bar: float = CLAIM_ACCURACY,
    seed: int = SEED,
    progress: bool = True,
) -> PlantedTruth:
    """Steps 1-4 on held-out scenes.

    Args:
        model: the planted model.
        chosen: its planting.
        n: prompts per family for the subsets.
        n_accuracy: prompts per family for the accuracies.
        bar: accuracy from which on a family is claimed.
        seed: seed of the scenes.
        progress: whether to show bars.

    Raises:
        DesignError: no family can be claimed.
    """
    started = time.perf_counter()
    asked = {f: scenes.prompts("heldout", n_accuracy, family=f, seed=seed) for f in scenes.FAMILIES}
    found = {
        f: _accuracies(model, prompts, chosen) | _worst_alone(model, prompts, chosen)
        for f, prompts in asked.items()
    }
    claimed = [f for f, shares in found.items() if is_claimed(shares, bar)]
    if not claimed:
        raise DesignError(
            f"planting {chosen.name!r} answers no family at {bar:g} or better; train it longer."
        )
    prompts = {f: asked[f][:n] for f in claimed}
    values, right = _all_subsets(model, prompts, players(chosen), progress)
    settings: dict[str, Any] = {"planting": chosen.name, "n_accuracy": n_accuracy}
    settings["worst_alone"] = {f: found[f]["worst_alone"] for f in claimed if "worst_alone" in found[f]}
    settings["not_claimed"] = {f: shares for f, shares in found.items() if f not in claimed}
    settings["proof"] = proof(model, chosen, prompts)
    some = [prompt for members in prompts.values() for prompt in members]
    info = run_info(
        model, model.prepare(some), seconds=time.perf_counter() - started, settings=settings, seed=seed
    )

    def column(name: str) -> Float[np.ndarray, " family"]:
        return np.array([found[f][name] for f in claimed])

    return PlantedTruth.from_arrays(
        value=values,
        accuracy=right,
        full_accuracy=column("full"),
        planted_only_accuracy=column("planted_only"),
        unplanted_only_accuracy=column("unplanted_only"),
        chance=column("chance"),
        heads=[(head.layer, head.head, head.part) for head in chosen.heads],
        baselines=BASELINES,
        families=claimed,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        info=info,
    )


def is_claimed(shares: Mapping[str, float], bar: float = CLAIM_ACCURACY) -> bool:
    """Whether a family is answered well, and no worse through the planted heads alone.

    If these are to be redundant, also hardly worse through any one of them.
    """
    lost = abs(shares["full"] - shares["planted_only"])
    alone = shares.get("worst_alone", shares["full"])
    return shares["full"] >= bar and lost <= CLAIM_LOSS and alone >= CLAIM_ALONE * shares["full"]


def players(chosen: Planting) -> list[tuple[int, int]]:
    """(layer, head) of the heads whose image edges are open, in the order of the truth's bits."""
    return [(head.layer, head.head) for head in chosen.heads if head.part != "relay"]


def proof(model: HookedVLM, chosen: Planting, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, float]:
    """Step 4: figures by name; weights are the largest over all prompts, accuracies over all families."""
    some = [prompt for members in prompts.values() for prompt in members]
    mask = _mask(model, players(chosen))
    found = {
        "image weight of unplanted heads": max(_image_weight(model, b, ~mask) for b in _batches(some)),
        "image weight of planted heads": max(_image_weight(model, b, mask) for b in _batches(some)),
    }
    if chosen.relayed:
        relays = [(head.layer, head.head) for head in chosen.of("relay")]
        carriers = [(head.layer, head.head) for head in chosen.of("carrier")]
        ways = {
            "accuracy": [],
            "accuracy, role tag cannot read the image through the carriers": [
                Block(src="image", dst="role", heads=carriers)
            ],
            "accuracy, final token cannot read the role tag through the relays": [
                Block(src="role", dst="final", heads=relays)
            ],
            "accuracy, nothing but the role tag can read the image": [
                Block(src="image", dst=["question", "final"])
            ],
        }
        for name, blocks in ways.items():
            hits = [_right(model, batch, blocks) for batch in _batches(some)]
            found[name] = float(torch.cat(hits).double().mean())
    return found


# --- steps


def _accuracies(model: HookedVLM, prompts: Sequence[Prompt], chosen: Planting) -> dict[str, float]:
    mask = _mask(model, players(chosen))
    conditions = {
        "full": [],
        "planted_only": [HeadMask(mask=mask, baseline="knockout")],
        "unplanted_only": [HeadMask(mask=~mask, baseline="knockout")],
    }
    shares = {
        name: float(torch.cat([_right(model, b, edits) for b in _batches(prompts)]).double().mean())
        for name, edits in conditions.items()
    }
    frequent = Counter(prompt.answer for prompt in prompts).most_common(1)[0][1]
    return {**shares, "chance": frequent / len(prompts)}


def _worst_alone(model: HookedVLM, prompts: Sequence[Prompt], chosen: Planting) -> dict[str, float]:
    """Of a redundant planting, the accuracy when only one carrier is open: the least over carriers."""
    if not chosen.redundant:
        return {}
    alone = []
    for head in chosen.of("carrier"):
        edit = HeadMask(mask=_mask(model, [(head.layer, head.head)]), baseline="knockout")
        hits = [_right(model, batch, [edit]) for batch in _batches(prompts)]
        alone.append(float(torch.cat(hits).double().mean()))
    return {"worst_alone": min(alone)}


def _all_subsets(
    model: HookedVLM,
    prompts: Mapping[str, Sequence[Prompt]],
    heads: Sequence[tuple[int, int]],
    progress: bool,
) -> tuple[Float[np.ndarray, "baseline family sample subset"], Float[np.ndarray, "baseline family subset"]]:
    subsets = torch.stack(
        [
            _mask(model, [head for i, head in enumerate(heads) if number >> i & 1])
            for number in range(2 ** len(heads))
        ]
    )
    n = max(map(len, prompts.values()), default=0)
    logits = np.zeros((len(BASELINES), len(prompts), n, len(subsets)))
    right = np.zeros_like(logits)
    with tqdm(total=len(BASELINES) * len(prompts) * n, desc="subsets", disable=not progress) as bar:
        for f, members in enumerate(prompts.values()):
            for s, prompt in enumerate(members):
                inputs = model.encode_images(model.prepare([prompt]))
                for b, baseline in enumerate(BASELINES):
                    for metric, into in (("logit", logits), ("margin", right)):
                        runs = open_runs(
                            model,
                            inputs,
                            metric=METRICS[metric],
                            baseline=baseline,
                            self_check=s == 0,
                            generator=sample_generator(0, s, "check"),
                        )
                        into[b, f, s] = runs(subsets).numpy()
                    bar.update(1)
    return logits, (right > 0).mean(axis=2)


def _batches(prompts: Sequence[Prompt]) -> Iterable[list[Prompt]]:
    return (list(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH))


def _mask(model: HookedVLM, heads: Sequence[tuple[int, int]]) -> Bool[Tensor, "layer head"]:
    mask = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    return mask


def _right(model: HookedVLM, prompts: list[Prompt], edits: list) -> Bool[Tensor, " prompt"]:
    inputs = model.prepare(prompts)
    with torch.no_grad():
        logits = model.run(inputs, edits, logits_pos="final", strict=False).logits[:, -1]
    return (logits.argmax(-1) == answer_ids(inputs)).cpu()


def _image_weight(model: HookedVLM, prompts: list[Prompt], mask: Bool[Tensor, "layer head"]) -> float:
    """Largest attention weight that a head of the mask gives the whole image, over all words after it."""
    inputs = model.prepare(prompts)
    largest = 0.0
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("attn.hook_pattern"))
    edges = inputs.mask("text")[:, None, :, None] & inputs.image_mask[:, None, None]
    for layer, heads in enumerate(mask):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, heads]
        if bool(heads.any()):
            largest = max(largest, float((pattern * edges).sum(-1).max()))
    return largest


def finish(folder: Path, *, n: int, n_accuracy: int) -> PlantedTruth:
    """Measure a trained planting's truth, and write truth, card and checksums into its folder."""
    chosen = planting(folder.name)
    truth = planted_truth(
        HookedVLM.from_pretrained(str(folder.resolve())), chosen, n=n, n_accuracy=n_accuracy
    )
    truth.save(folder / TRUTH)
    write_planted_card(folder, chosen, _figures(truth), truth.info.settings)
    seal(folder)
    return truth


def _figures(truth: PlantedTruth) -> dict[str, dict[str, float]]:
    columns = ("full_accuracy", "planted_only_accuracy", "unplanted_only_accuracy", "chance")
    return {f: {c: float(truth.data[c].sel(family=f)) for c in columns} for f in truth.families}


def main(given: list[str] | None = None) -> None:
    """Parse the command line and finish each folder."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.planted_truth", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="trained plantings, each named planted-NAME")
    parser.add_argument("--n", type=int, default=60, help="prompts of each family for the subsets")
    parser.add_argument("--n-accuracy", type=int, default=500, help="prompts of each family for accuracies")
    arguments = parser.parse_args(given)
    for folder in arguments.folders:
        truth = finish(folder, n=arguments.n, n_accuracy=arguments.n_accuracy)
        typer.echo(
            json.dumps({"name": folder.name, "claimed": _figures(truth), **truth.info.settings}, indent=1)
        )


if __name__ == "__main__":
    main()
