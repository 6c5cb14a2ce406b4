"""Accuracy with and without the image reaching the text: does the answer come from the image at all?

1. Per family of prompts, run clean and with every text-to-image edge closed in all layers and heads; or under
   other conditions, each a list of interventions. All conditions see the same prompts.
2. An answer is correct if it is the likeliest next token.
3. Beside the accuracies: the share of the most frequent answer, which is what blind guessing scores, and
   Wilson intervals.

Source: attention knockout (arXiv 2304.14767) used as a control; Wilson 1927 for the interval.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Num
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.samples import run_info
from mmlens.errors import ConfigError, InputError
from mmlens.inputs import Prompt
from mmlens.interventions import Block, Intervention
from mmlens.interventions.compile import describe
from mmlens.metrics import answer_ids
from mmlens.model import HookedVLM
from mmlens.result import AccuracyResult

ALL = "all"
"""Name of the family of all prompts together."""
CLEAN = "clean"
"""Name of the condition without any intervention, which is always measured."""

Conditions = Mapping[str, Sequence[Intervention]]


def blocked_accuracy(
    model: HookedVLM,
    families: Mapping[str, Sequence[Prompt]],
    *,
    conditions: Conditions | None = None,
    intervention: str | None = None,
    dataset: str = "prompts",
    confidence: float = 0.95,
    batch_size: int = 32,
    progress: bool = True,
) -> AccuracyResult:
    """Accuracy per family, clean and with all image-to-text attention blocked, or under other conditions.

    Args:
        model: the model.
        families: question family -> prompts with answers. A family ``all`` is added if there are several.
        conditions: condition -> interventions, measured beside ``clean``; None: ``blocked``, in which no text
            token reads any image token.
        intervention: what the conditions do, in words; by default their interventions as code.
        dataset: name of the data, for the record.
        confidence: coverage of the Wilson intervals.
        batch_size: prompts run together.
        progress: whether to show a bar.

    Returns:
        Shares of correct answers [family, condition], ``clean`` and then the conditions in their order, and
        the majority rate (of ``all``: what guessing each family's most frequent answer scores).

    Raises:
        AnswerError: a prompt has no answer.
        InputError: a family is empty.
        ConfigError: a condition has no intervention or is called ``clean``, or an option is not possible.
    """
    started = time.perf_counter()
    _check(families, confidence, batch_size)
    if conditions is None:
        conditions = {"blocked": (Block(src="image", dst="text"),)}
        intervention = intervention or "no text token reads any image token, in any layer or head"
    _check_conditions(conditions)
    prompts = [prompt for members in families.values() for prompt in members]
    correct: dict[str, np.ndarray] = {}
    with tqdm(total=len(prompts), desc="blocked accuracy", unit="prompt", disable=not progress) as bar:
        for name, members in families.items():
            batches = [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
            correct[name] = torch.cat([_correct(model, batch, conditions, bar) for batch in batches]).numpy()
    guessed = {name: _majority(members) for name, members in families.items()}
    if len(families) > 1:
        correct[ALL], guessed[ALL] = np.concatenate(list(correct.values())), sum(guessed.values())
    data = _dataset(correct, guessed, [CLEAN, *conditions], confidence)
    described = {name: [describe(one) for one in members] for name, members in conditions.items()}
    in_code = "; ".join(f"{name}: {', '.join(members)}" for name, members in described.items())
    data.attrs = {"dataset": dataset, "intervention": intervention or in_code}
    info = run_info(
        model,
        model.prepare(list(prompts[:1])),
        seconds=time.perf_counter() - started,
        settings={
            "dataset": dataset,
            "n_prompts": len(prompts),
            "confidence": confidence,
            "conditions": described,
        },
        batch_size=batch_size,
    )
    return AccuracyResult(data=data, info=info)


def wilson_interval(
    hits: Num[np.ndarray, "*n"], trials: Num[np.ndarray, "*#n"], confidence: float = 0.95
) -> Float[np.ndarray, "*n 2"]:
    """Wilson score interval of a share: lower and upper end along a new last axis."""
    pairs = zip(hits.flat, np.broadcast_to(trials, hits.shape).flat, strict=True)
    tests = (stats.binomtest(int(k), int(n)) for k, n in pairs)
    bounds = [one.proportion_ci(confidence, method="wilson") for one in tests]
    return np.array(bounds).reshape(*hits.shape, 2)


def _majority(prompts: Sequence[Prompt]) -> int:
    """How many of the prompts have the most frequent answer."""
    return Counter(prompt.answer for prompt in prompts).most_common(1)[0][1]


def _dataset(
    correct: Mapping[str, np.ndarray], guessed: Mapping[str, int], conditions: list[str], confidence: float
) -> xr.Dataset:
    n = np.array([len(one) for one in correct.values()])
    hits = np.stack([one.sum(axis=0) for one in correct.values()])  # [family, condition]
    text = {"description": f"{confidence:.3g} Wilson interval of the share of correct answers"}
    bounds = wilson_interval(hits, n[:, None], confidence)
    return xr.Dataset(
        {
            "accuracy": (("family", "condition"), hits / n[:, None]),
            "interval": (("family", "condition", "bound"), bounds, text),
            "majority": ("family", np.array(list(guessed.values())) / n),
            "n": ("family", n),
        },
        coords={
            "family": np.array(list(correct), dtype=object),
            "condition": np.array(conditions, dtype=object),
        },
    )


def _check(families: Mapping[str, Sequence[Prompt]], confidence: float, batch_size: int) -> None:
    empty = [name for name, members in families.items() if not members]
    if not families or empty:
        raise InputError(
            f"each family needs at least one prompt; empty: {', '.join(empty) or 'all of them'}."
        )
    if ALL in families and len(families) > 1:
        raise InputError(f"a family cannot be called {ALL!r}: that name stands for all families together.")
    if not 0.0 < confidence < 1.0 or batch_size < 1:
        raise ConfigError(
            f"confidence={confidence} must lie between 0 and 1, batch_size={batch_size} be at least 1."
        )


def _check_conditions(conditions: Conditions) -> None:
    empty = [name for name, members in conditions.items() if not members]
    if not conditions or empty:
        raise ConfigError(
            f"each condition needs at least one intervention; empty: {', '.join(empty) or 'all of them'}. "
            f"{CLEAN!r}, without any, is measured anyway."
        )
    if CLEAN in conditions:
        raise ConfigError(f"a condition cannot be called {CLEAN!r}: that one has no intervention.")


def _correct(
    model: HookedVLM, prompts: Sequence[Prompt], conditions: Conditions, bar: tqdm
) -> Bool[Tensor, "prompt condition"]:
    inputs = model.encode_images(model.prepare(list(prompts)))
    answers = answer_ids(inputs)
    right = []
    with torch.no_grad():
        for interventions in ((), *conditions.values()):
            logits = model.run(inputs, list(interventions), logits_pos="final").logits[:, -1]
            right.append(logits.argmax(-1) == answers)
    bar.update(len(prompts))
    return torch.stack(right, dim=1).cpu()
