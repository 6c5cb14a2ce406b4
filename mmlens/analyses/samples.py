"""What every analysis starts from and ends with: prepared samples, and where the numbers came from."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.errors import InputError, MMLensError
from mmlens.inputs import Inputs
from mmlens.interventions import HeadBaseline, ImageKV
from mmlens.metrics import Metric, check_answers
from mmlens.model import HookedVLM
from mmlens.result import RunInfo


def as_samples(model: HookedVLM, prompts: Any, metric: Metric | None = None) -> Inputs:
    """Prompts, chat messages, a processor's tensors or ``Inputs``, with the images encoded once.

    Args:
        model: the model.
        prompts: the samples.
        metric: what will be measured, so that a sample without the answer it needs is refused before anything is run.

    Raises:
        InputError: there is no sample, or ``model.prepare`` refuses the prompts.
        AnswerError: the metric needs an answer that a sample lacks, or an answer is no token of the model.
    """
    inputs = prompts if isinstance(prompts, Inputs) else model.prepare(prompts)
    if inputs.batch_size < 1:
        raise InputError("no prompts were given; an analysis needs at least one.")
    check_answers(inputs, model.cfg.d_vocab, metric)
    return model.encode_images(inputs)


def sample_generator(seed: int, sample: int, purpose: Literal["masks", "check"] = "masks") -> torch.Generator:
    """Randomness of one sample: independent between samples and purposes, the same whatever else is run.

    Masks are drawn anew for each sample, because shared masks would share their estimation error, which makes
    coefficients of different samples look more alike than they are.
    """
    key = [seed, sample, ("masks", "check").index(purpose)]
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def baseline_name(baseline: HeadBaseline | ImageKV) -> str:
    """What an ablated head reads, in a word."""
    return baseline if isinstance(baseline, str) else "given keys and values"


def named(error: MMLensError, inputs: Inputs, sample: int) -> MMLensError:
    """The same error, saying which sample it happened to."""
    question = f" ({inputs.prompts[sample].question!r})" if inputs.prompts else ""
    return type(error)(f"sample {sample}{question}: {error}")


def sample_coords(
    model: HookedVLM, inputs: Inputs, final_logits: Float[Tensor, "batch d_vocab"] | None = None
) -> dict[str, tuple[str, np.ndarray]]:
    """Coordinates of the sample axis: id, question, answer, foil, and what the clean model answers.

    Args:
        model: gives the tokenizer.
        inputs: the samples.
        final_logits: clean logits at the last position, if they are at hand.
    """
    n, prompts = inputs.batch_size, inputs.prompts
    said = [""] * n if final_logits is None else [_text(model, int(row.argmax())) for row in final_logits]
    columns = {
        "sample": [str(i) for i in range(n)],
        "question": [prompts[i].question if prompts else "" for i in range(n)],
        "answer": [prompts[i].answer or "" if prompts else "" for i in range(n)],
        "foil": [prompts[i].foil or "" if prompts else "" for i in range(n)],
        "model_answer": said,
    }
    return {name: ("sample", np.array(values, dtype=object)) for name, values in columns.items()}


def image_digests(inputs: Inputs) -> list[str]:
    """SHA-256 of each sample's pixels as the model sees them; empty strings where there are none."""
    digests = []
    for i in range(inputs.batch_size):
        pixels = inputs.select([i]).pixel_values
        raw = b"" if pixels is None else pixels.detach().cpu().float().contiguous().numpy().tobytes()
        digests.append(hashlib.sha256(raw).hexdigest() if raw else "")
    return digests


def run_info(
    model: HookedVLM,
    inputs: Inputs,
    *,
    seconds: float,
    settings: Mapping[str, Any],
    engine: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> RunInfo:
    """Provenance of an analysis of these samples."""
    told = {"image_sha256": image_digests(inputs), "prompts": [prompt.question for prompt in inputs.prompts]}
    return streamed_info(
        model, settings=settings, seconds=seconds, attn_implementation=engine, batch_size=batch_size, seed=seed, **told
    )  # fmt: skip


def streamed_info(
    model: HookedVLM, *, settings: Mapping[str, Any], seconds: float, **options: Any
) -> RunInfo:
    """Provenance of an analysis of more samples than it would name one by one.

    Args:
        model: the model.
        settings: options of the method; how many samples there were, and their common digest, belong here.
        seconds: wall-clock time.
        **options: further fields of :class:`mmlens.result.RunInfo`, such as ``batch_size`` and ``seed``.
    """
    stored, computed = (
        str(dtype).removeprefix("torch.") for dtype in (model.embed.weight.dtype, model.dtype)
    )
    return RunInfo.collect(
        model_id=model.model_id,
        weight_fingerprint=model.weight_fingerprint(),
        dtype=stored,
        device=str(model.device),
        revision=model.revision,
        threads=torch.get_num_threads(),
        settings={**settings, "compute_dtype": computed},
        seconds=seconds,
        **options,
    )


def _text(model: HookedVLM, token: int) -> str:
    return "" if model.tokenizer is None else str(model.tokenizer.decode([token])).strip()
