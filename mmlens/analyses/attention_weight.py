"""Attention weight: how much each head looks at the image. A baseline: looking is not carrying.

1. Run each prompt once, clean.
2. Per head, sum the attention that the final token pays to image tokens (or the mean over all text after the
   image).

Source: the comparison of head attribution (arXiv 2509.17588) and many others before it.
"""

import time
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mmlens.analyses.samples import as_samples, run_info, sample_coords
from mmlens.errors import ConfigError, InputError
from mmlens.inputs import Inputs
from mmlens.model import HookedVLM
from mmlens.result import HeadScoreResult


def attention_weight(
    model: HookedVLM, prompts: Any, *, reader: Literal["final", "text"] = "final", progress: bool = True
) -> HeadScoreResult:
    """Share of each head's attention that lies on image tokens.

    Args:
        model: the model.
        prompts: prompts, chat messages, a processor's tensors or ``Inputs``.
        reader: ``final`` for the last prompt token, ``text`` for the mean over all tokens after the last
            image.
        progress: whether to show a bar.

    Returns:
        Scores [sample, layer, head] in [0, 1]; positive = looks at the image.

    Raises:
        InputError: a prompt has no image.
    """
    started = time.perf_counter()
    if reader not in ("final", "text"):
        raise ConfigError(f"reader {reader!r} is unknown; choose 'final' or 'text'.")
    inputs = as_samples(model, prompts)
    scores, logits = [], []
    for i in tqdm(range(inputs.batch_size), desc="attention weight", disable=not progress):
        sample = inputs.select([i])
        rows, final_logits = attention_rows(model, sample, reader)
        scores.append(rows[..., sample.image_mask[0].to(rows.device)].sum(-1).mean(-1).double().cpu().numpy())
        logits.append(final_logits)
    who = {"final": "the final token", "text": "text after the image"}[reader]
    data = xr.Dataset(
        {"score": (("sample", "layer", "head"), np.stack(scores))},
        coords=sample_coords(model, inputs, torch.cat(logits)),
        attrs={"method": "attention weight", "unit": "1", "sign": f"positive = {who} looks at the image"},
    )
    seconds = time.perf_counter() - started
    return HeadScoreResult(
        data=data, info=run_info(model, inputs, seconds=seconds, settings={"reader": reader})
    )


def attention_rows(
    model: HookedVLM, sample: Inputs, reader: Literal["final", "text"] = "final"
) -> tuple[Float[Tensor, "layer head query key"], Float[Tensor, "1 d_vocab"]]:
    """Attention rows of the reading positions in a clean run, and the logits at the last position.

    Args:
        model: the model.
        sample: one sample.
        reader: ``final`` for the last prompt token, ``text`` for all tokens after the last image.

    Raises:
        InputError: the sample has no image, or no text after it.
    """
    image = sample.image_mask[0].nonzero()[:, 0]
    if len(image) == 0 or int(image[-1]) + 1 == sample.n_pos:
        raise InputError(
            "the prompt has no image tokens, or nothing after them: no text could read an image."
        )
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    pos = "final" if reader == "final" else slice(int(image[-1]) + 1, None)
    with torch.no_grad():
        logits, cache = model.run_with_cache(sample, names_filter=names, pos=pos, logits_pos="final")
    return torch.cat([cache[name] for name in names]), logits[:, -1]
