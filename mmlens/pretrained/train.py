"""Trains a scenes model on the CPU: ``python -m mmlens.pretrained.train --out RUN --folder MODEL``.

The data of every step follow from the seed and the step alone, so a run that was killed goes on from its last
checkpoint as if nothing had happened. Ranks (processes of one thread each) share a batch and average their
gradients; that is faster here than one process of several threads.
"""

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from mmlens.datasets.scenes import FAMILIES, scene
from mmlens.datasets.scenes.values import CELL
from mmlens.errors import ConfigError
from mmlens.pretrained.architecture import build_model, save_folder, seeded
from mmlens.pretrained.batches import NEVER, PackedBatch, Packer, pixel_values
from mmlens.pretrained.card import write_card
from mmlens.pretrained.checkpoints import (
    append_curve,
    read_checkpoint,
    read_curve,
    trim_curve,
    write_checkpoint,
)
from mmlens.pretrained.checksums import seal
from mmlens.pretrained.evaluate import evaluate, write_scores
from mmlens.pretrained.muon import Muon
from mmlens.pretrained.objective import ALIGN_WEIGHT, AuxiliaryHeads, Losses, losses, tower_losses
from mmlens.pretrained.vocabulary import EOS, build_tokenizer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training run is; its weights follow from these (and the number of ranks, by rounding)."""

    seed: int = 0
    tower_steps: int = 2500
    """Optimiser steps on the dense loss alone, before the others: tower and readers only, which is cheap."""
    steps: int = 7500
    """Optimiser steps on the answers, after those."""
    align_steps: int = 800
    """The first of these, with the alignment loss; it pulls image tokens towards words and away from all else,
    so that places and numbers are learnt only once it is gone."""
    batch: int = 24
    """Images a step, over all ranks."""
    ranks: int = 2
    matrix_lr: float = 0.015
    tower_share: float = 0.3
    """Factor on the learning rate of the tower's matrices after its own part."""
    weight_decay: float = 0.1
    """Of the matrices, relative to their learning rate."""
    other_lr: float = 2e-3
    warmup: int = 50
    """Steps of rising learning rate, at the beginning of both parts."""
    decay: float = 0.7
    """Last share of each part's steps, in which the learning rate falls to zero; in the tower's own part, to
    ``tower_share``."""
    layers: int = 6
    vision_layers: int = 4

    def __post_init__(self) -> None:
        """Refuse runs that cannot be."""
        if min(self.batch, self.ranks, self.steps, self.tower_steps + 1) < 1 or self.batch % self.ranks:
            raise ConfigError(
                f"{self.steps} steps of {self.batch} images over {self.ranks} ranks are impossible: "
                "all must be positive and the batch a multiple of the ranks"
            )

    @property
    def total(self) -> int:
        """Optimiser steps in all."""
        return self.tower_steps + self.steps

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step, in each part: up, constant, then down in a line."""
        tower = step < self.tower_steps
        step, steps = (step, self.tower_steps) if tower else (step - self.tower_steps, self.steps)
        left = min(1.0, (steps - step) / max(1.0, self.decay * steps))
        least = self.tower_share if tower else 0.0
        return min((step + 1) / self.warmup, least + left * (1 - least))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of one rank: its losses by name, and per question family which questions it got right."""

    losses: dict[str, float]
    right: dict[str, list[bool]]


class Trainer:
    """One rank of a run."""

    def __init__(self, settings: Settings, folder: Path, rank: int = 0) -> None:
        """Build the model, or go on from the folder's checkpoint."""
        self.settings, self.folder, self.rank, self.step = settings, folder, rank, 0
        self.tokenizer = build_tokenizer()
        self.eos = self.tokenizer.get_vocab()[EOS]
        self.packer = Packer(self.tokenizer, seed=settings.seed)
        sizes = {"layers": settings.layers, "vision_layers": settings.vision_layers}
        patches = sample_patches(settings.seed)
        with seeded(settings.seed):
            self.model = build_model(None, patches, **sizes)
            self.heads = AuxiliaryHeads(self.tokenizer)
        self._start()
        self.params = [p for p in (*self.model.parameters(), *self.heads.parameters()) if p.requires_grad]
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if _is_hidden_matrix(name, p)]
        known = {id(p) for p in matrices}
        others = [p for p in self.params if id(p) not in known]
        tower = [p for name, p in named if _is_hidden_matrix(name, p) and "vision_tower" in name]
        slow = {id(p) for p in tower}
        rest = [p for p in matrices if id(p) not in slow]
        groups = [{"params": tower, "tower": True}, {"params": rest, "tower": False}]
        self.optimisers = (
            Muon(groups, lr=settings.matrix_lr, weight_decay=settings.weight_decay),
            torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.98), weight_decay=0.01),
        )
        self._resume()

    def _start(self) -> None:
        """What else a run of another kind does before its first step."""

    def fixed(self) -> dict[str, Any]:
        """Settings that a resumed run must share; it may go on for longer or shorter."""
        return {k: v for k, v in asdict(self.settings).items() if k != "steps"}

    def _resume(self) -> None:
        state = read_checkpoint(self.folder, settings=self.fixed())
        if state is None:
            return
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "settings": self.fixed(),
            "step": self.step,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        write_checkpoint(self.folder, state)

    def advance(self) -> "Progress":
        """One optimiser step; returns how this rank's part of the batch went, before the step."""
        share = self.settings.batch // self.settings.ranks
        first = self.step * self.settings.batch + self.rank * share
        batch = self.packer.batch(first, share)
        found = self._losses(batch)
        found.total.backward()
        _average_gradients(self.params, self.settings.ranks)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        rates = (self.settings.matrix_lr, self.settings.other_lr)
        for optimiser, rate in zip(self.optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                slow = group.get("tower", False) and self.step >= self.settings.tower_steps
                share = self.settings.tower_share if slow else 1.0
                group["lr"] = rate * share * self.settings.rate(self.step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._stepped(batch)
        return self._progress(batch, found)

    def _stepped(self, batch: PackedBatch) -> None:
        """What else a run of another kind does after every step."""

    def _losses(self, batch: PackedBatch) -> Losses:
        if self.step < self.settings.tower_steps:
            return tower_losses(self.model, self.heads, batch)
        aligned = self.step < self.settings.tower_steps + self.settings.align_steps
        weight = ALIGN_WEIGHT if aligned else 0.0
        return losses(self.model, self.heads, batch, eos=self.eos, align_weight=weight)

    @staticmethod
    def _progress(batch: PackedBatch, found: Losses) -> "Progress":
        right: dict[str, list[bool]] = {family: [] for family in FAMILIES}
        seen = (batch.open_from != NEVER)[batch.answer_at[:, 0]]
        if len(found.right):
            for family, is_right in zip(batch.family[seen].tolist(), found.right[seen].tolist(), strict=True):
                right[FAMILIES[family]].append(is_right)
        kept = {name: getattr(found, name).item() for name in ("answer", "dense", "align")}
        return Progress(losses=kept, right=right)


def train(
    settings: Settings,
    folder: Path,
    *,
    rank: int = 0,
    every: int = 50,
    save_every: int = 200,
    make: Callable[[Any, Path, int], Trainer] = Trainer,
) -> Trainer:
    """Train to the end, with the curve and checkpoints in ``folder``.

    Args:
        settings: The run.
        folder: Where its curve and checkpoint go, and where a run is resumed from.
        rank: This process's number; rank 0 writes.
        every: Steps between points of the curve.
        save_every: Steps between checkpoints.
        make: Builds the trainer.

    Returns:
        The trainer, with the trained model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = make(settings, folder, rank)
    if rank == 0:
        trim_curve(folder, trainer.step)
    window: list[Progress] = []
    began = time.monotonic()
    steps = range(trainer.step, settings.total)
    for _ in tqdm(steps, initial=trainer.step, total=settings.total, desc="training", disable=rank > 0):
        window.append(trainer.advance())
        last = trainer.step == settings.total
        if rank == 0 and (trainer.step % every == 0 or last):
            append_curve(folder, _point(trainer.step, time.monotonic() - began, window))
            window = []
        if rank == 0 and (trainer.step % save_every == 0 or last):
            trainer.save()
    return trainer


def sample_patches(seed: int, n: int = 200) -> Float[Tensor, "n d_patch"]:
    """Flattened pixel patches of the first ``n`` training scenes, to start the patch embedding from."""
    pixels = pixel_values([scene("train", i, seed=seed) for i in range(n)])
    return nn.functional.unfold(pixels, CELL, stride=CELL).transpose(1, 2).flatten(0, 1)


def _point(step: int, seconds: float, window: list[Progress]) -> dict[str, Any]:
    def mean(values: list[float]) -> float:
        return round(sum(values) / max(1, len(values)), 4)

    point: dict[str, Any] = {"step": step, "seconds": round(seconds, 1)}
    for name in ("answer", "dense", "align"):
        point[name] = mean([progress.losses[name] for progress in window])
    right = {family: [float(r) for progress in window for r in progress.right[family]] for family in FAMILIES}
    point["accuracy"] = {family: mean(values) for family, values in right.items()}
    return point


def _is_hidden_matrix(name: str, p: nn.Parameter) -> bool:
    return p.ndim == 2 and "embed" not in name and "lm_head" not in name


def _average_gradients(params: list[nn.Parameter], ranks: int) -> None:
    if ranks == 1:
        return
    used = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in used])
    torch.distributed.all_reduce(flat)
    flat /= ranks
    for grad, part in zip(used, flat.split([grad.numel() for grad in used]), strict=True):
        grad.copy_(part.view_as(grad))


def quicken() -> None:
    """One thread a rank, and glibc told to keep freed memory: mapping it anew each step costs a fifth."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def finish(trainer: Trainer, folder: Path, *, n: int) -> None:
    """Write the finished model: rounded to fp16, scored as it will be used, described, sealed.

    Args:
        trainer: The trained run.
        folder: Where the HF folder goes.
        n: Held-out scenes of each question family to score it on.
    """
    save_folder(trainer.model, folder)
    scores = evaluate(folder, n=n, seed=trainer.settings.seed)
    write_scores(scores, folder)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    curve = read_curve(trainer.folder)
    write_card(folder, settings=asdict(trainer.settings), parameters=parameters, curve=curve, scores=scores)
    seal(folder)


def _run_rank(
    rank: int, settings: Settings, out: Path, folder: Path, evaluated: int, rendezvous: str
) -> None:
    quicken()
    if settings.ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=settings.ranks
        )
    trainer = train(settings, out, rank=rank)
    if settings.ranks > 1:
        torch.distributed.destroy_process_group()
    if rank == 0:
        finish(trainer, folder, n=evaluated)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmlens.pretrained.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="run folder: checkpoint, curve")
    parser.add_argument("--folder", type=Path, required=True, help="where the finished HF folder goes")
    parser.add_argument("--evaluated", type=int, default=2000, help="held-out scenes of each question family")
    for item in fields(Settings):
        kind = float if isinstance(item.default, float) else int
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=item.default)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Parse the command line, train, and write the model's folder."""
    arguments = _arguments(given)
    settings = Settings(**{item.name: getattr(arguments, item.name) for item in fields(Settings)})
    arguments.out.mkdir(parents=True, exist_ok=True)
    meeting = arguments.out.resolve() / f"meeting-{os.getpid()}"
    job = (settings, arguments.out, arguments.folder, arguments.evaluated, meeting.as_uri())
    if settings.ranks == 1:
        _run_rank(0, *job)
    else:
        torch.multiprocessing.spawn(_run_rank, job, nprocs=settings.ranks)
    meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
