"""Trains a planted model from a scenes model: ``python -m mmlens.pretrained.plant NAME --out RUN --folder MODEL``.

1. Copy a trained scenes model; tower and projector stay as they are (but for the projector's flag outputs).
2. Gate the weights, so that only the planted heads can read the image (see ``gates``).
3. Train the decoder on the answer loss, and gate it again after every step.
4. In a redundant planting, close the image to some of the carriers, drawn by lot for each image.

A killed run goes on from its last checkpoint, with the same data, like any training run.
"""

import argparse
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from mmlens.pretrained import names, path
from mmlens.pretrained.architecture import save_folder
from mmlens.pretrained.batches import NEVER, PackedBatch
from mmlens.pretrained.gates import apply_gates, gate_strength
from mmlens.pretrained.objective import Losses, image_columns, losses, masks_replaced
from mmlens.pretrained.plantings import PLANTINGS, Planting, planting
from mmlens.pretrained.train import Settings, Trainer, quicken, train

CLOSED_SHARE = 0.6
"""Share of images for which a redundant planting closes all carriers but one, or but two."""
RECALIBRATE = 100
"""Steps between measurements of how large activations are, which decide the gates' strength."""


@dataclass(frozen=True, kw_only=True)
class PlantSettings(Settings):
    """What a planting run is. ``seed`` decides the order of the data, which differs from the base's."""

    name: str = "layer"
    base: str = "scenes"
    """Embedded model or folder that it starts from."""
    seed: int = 100
    tower_steps: int = 0
    steps: int = 1500
    batch: int = 16
    ranks: int = 1
    matrix_lr: float = 0.01
    other_lr: float = 1e-3
    decay: float = 0.9


class Planter(Trainer):
    """One planting run."""

    def __init__(self, settings: PlantSettings, folder: Path, rank: int = 0) -> None:
        """Build the base model, freeze what stays, gate the rest; or go on from the checkpoint."""
        self.planting, self.seed = planting(settings.name), settings.seed
        self.base = path(settings.base) if settings.base in names() else Path(settings.base)
        super().__init__(settings, folder, rank)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads of the decoder."""
        text = self.model.config.get_text_config()
        return text.num_hidden_layers, text.num_attention_heads

    def _start(self) -> None:
        loaded = AutoModelForImageTextToText.from_pretrained(
            self.base, dtype=torch.float32, local_files_only=True
        )
        self.model.load_state_dict(loaded.state_dict())
        for part in (self.model.model.vision_tower, self.model.model.multi_modal_projector, self.heads):
            part.requires_grad_(False)
        self.constrain(self.packer.batch(0, 8))

    def _losses(self, batch: PackedBatch) -> Losses:
        closed = closed_heads(self.planting, batch, shape=self.shape, seed=self.seed)
        with image_closed(self.model.model.language_model.layers, batch, closed):
            return losses(self.model, None, batch, eos=self.eos)

    def _stepped(self, batch: PackedBatch) -> None:
        if self.step % RECALIBRATE == 0:
            self.constrain(batch)
        else:
            apply_gates(self.model, self.tokenizer, self.planting, self.strength)

    @torch.no_grad()
    def constrain(self, batch: PackedBatch) -> None:
        """Gate the weights with the strength that this batch's activations call for."""
        apply_gates(self.model, self.tokenizer, self.planting, torch.ones(self.shape[0]))
        with residuals_kept(self.model) as kept:
            losses(self.model, None, batch, eos=self.eos)
        self.strength = gate_strength(self.model, [rows.flatten(0, -2) for rows in kept])
        apply_gates(self.model, self.tokenizer, self.planting, self.strength)


def closed_heads(
    chosen: Planting, batch: PackedBatch, *, shape: tuple[int, int], seed: int
) -> Bool[Tensor, "batch layer head"]:
    """Which heads may not read which image: all where it is never open, and carriers drawn by lot.

    Args:
        chosen: the planting.
        batch: packed questions.
        shape: layers and heads of the decoder.
        seed: of the lots.
    """
    closed = (batch.open_from == NEVER)[:, None, None].repeat(1, *shape)
    if not chosen.redundant:
        return closed
    carriers = chosen.of("carrier")
    for image, index in enumerate(batch.index.tolist()):
        rng = random.Random(f"close/{seed}/{index}")
        if rng.random() < CLOSED_SHARE:
            kept = rng.sample(carriers, rng.choice((1, 1, 2)))
            for head in carriers:
                closed[image, head.layer, head.head] |= head not in kept
    return closed


def image_closed(
    layers: nn.ModuleList, batch: PackedBatch, closed: Bool[Tensor, "batch layer head"]
) -> AbstractContextManager[None]:
    """Inside, questions cannot read the image through the closed heads."""
    edges = (batch.segment > 0)[:, None, :, None] & image_columns(batch)
    lowest = torch.finfo(torch.float32).min
    return masks_replaced(
        (layer, batch.attention_mask().masked_fill(closed[:, depth, :, None, None] & edges, lowest))
        for depth, layer in enumerate(layers)
        if closed[:, depth].any()
    )


@contextmanager
def residuals_kept(
    model: LlavaForConditionalGeneration,
) -> Iterator[list[Float[Tensor, "batch pos d_model"]]]:
    """Inside, what enters each decoder layer is appended to the list."""
    kept: list[Tensor] = []
    layers = model.model.language_model.layers
    handles = [layer.register_forward_pre_hook(lambda module, args: kept.append(args[0])) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmlens.pretrained.plant", description=__doc__)
    parser.add_argument("name", choices=sorted(PLANTINGS))
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoint, curve")
    parser.add_argument("--folder", type=Path, required=True, help="where the finished HF folder goes")
    parser.add_argument("--steps", type=int, help="optimiser steps; the planting's own if not given")
    for item in fields(PlantSettings):
        if item.name not in ("name", "ranks", "steps"):
            parser.add_argument(
                f"--{item.name.replace('_', '-')}", type=type(item.default), default=item.default
            )
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Parse the command line, train, and write the model's folder (without its truth)."""
    arguments = _arguments(given)
    kept = {
        item.name: getattr(arguments, item.name) for item in fields(PlantSettings) if item.name != "ranks"
    }
    kept["steps"] = arguments.steps or planting(arguments.name).steps
    quicken()
    trainer = train(PlantSettings(**kept), arguments.out, make=Planter)
    save_folder(trainer.model, arguments.folder)


if __name__ == "__main__":
    main()
