"""Head attribution of a million images, on paper: ``python -m mmlens.recipes.million_images``.

1. Work of one head mask, of one whole forward pass and of what a prompt needs once, from a model's published sizes.
2. Masks per image for a wanted correlation r with the coefficients of unlimited masks, over D heads of a model whose
   metric is linear in the masks but for 1 − R² of its variance:

       N(r) = D (1 + f (1 − R²) / R² · r² / (1 − r²))

   f is 1 for independent masks. Complements cancel interactions of even order and make two runs one observation, so
   that f is twice the share of odd orders in what is not linear. Hadamard designs come in whole blocks.
3. Seconds per image and GPU-hours, at a GPU's peak rate and the share of it that is used.
4. Storage (``unit_storage``): a unit of the embedded model is written and measured; its arrays grow with heads, image
   cells, pixels and tokens of the large model, the rest is constant.

Prints the assumptions and five tables in Markdown. Nothing is run on a large model.

Source: the formula is ours, from the variance of least squares with N masks. ``mmlens.recipes.design_table`` measures
the masks that the embedded model needs.
"""

import argparse
from dataclasses import dataclass, fields, replace

import typer

from mmlens.analyses.design import block_size
from mmlens.config import ModelConfig, VisionConfig
from mmlens.errors import ConfigError
from mmlens.loading import typed_config
from mmlens.model.describe import byte_text
from mmlens.recipes.engine_work import PromptParts, batch_work, forward_work
from mmlens.recipes.markdown import markdown_table
from mmlens.recipes.memory_table import MODELS
from mmlens.recipes.unit_storage import EMBEDDED, enlarged, measured_unit

GATE_PASSES = 8 * 3
"""Whole forward passes that ``prior="gates"`` costs: eight, each with a backward pass of about twice its work."""
CHECKED = 2
"""Masks of the self-check of every prompt, which are run both ways."""
HELD_OUT = 128
"""Fresh masks by which ``head_attribution`` judges its fit."""
ENDS = 2
"""Masks that keep and ablate everything."""
BATCH = 128
"""Masks run together; work per mask hardly depends on it."""
TARGETS = (0.95, 0.99)
SUFFIXES = (32, 60)
"""Lengths of a short and a long question, shown beside the assumed one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is assumed, all of it.

    Attributes:
        model: a name of ``mmlens.recipes.memory_table.MODELS``.
        images: how many, one question each.
        system: tokens before the suffix that are no image tokens.
        suffix: tokens after the image: question and role.
        r2: share of the metric's variance that is linear in the masks.
        odd: share of interactions of odd order in the rest.
        peak: FLOP/s of one GPU in bfloat16, as its vendor states it (A100: 312e12).
        utilisation: share of the peak that is reached.
        prior: masks per head that are enough with gradients of gates as a prior.
        pool: images of one kind that share one map.
        folder: images per folder of results.
        disk: bytes per second that a folder's files are read with.
        decoding: images per second that a process decodes and digests.
    """

    model: str = "LLaVA-1.5-7B"
    images: int = 1_000_000
    system: int = 35
    suffix: int = 45
    r2: float = 0.8
    odd: float = 0.25
    peak: float = 312e12
    utilisation: float = 0.4
    prior: float = 0.5
    pool: int = 100
    folder: int = 10_000
    disk: float = 200e6
    decoding: int = 100


# --- 1


def config_of(plan: Plan) -> ModelConfig:
    """The model's configuration."""
    return ModelConfig.from_hf(typed_config(MODELS[plan.model]))


def parts_of(cfg: ModelConfig, plan: Plan) -> PromptParts:
    """Lengths of a prompt about one image."""
    return PromptParts(n_system=plan.system, n_image=_tower(cfg).grid ** 2, n_suffix=plan.suffix)


def tower_work(cfg: ModelConfig) -> float:
    """FLOP of an image's way through a CLIP tower, as far as the layer that is read, and the two-layer projector."""
    tower = _tower(cfg)
    d, n, n_cells = tower.d_model, tower.n_pos, tower.grid**2
    last = max(layer if layer >= 0 else tower.n_layers + 1 + layer for layer in tower.feature_layers)
    layer = 2.0 * n * d * (4 * d + 2 * tower.d_mlp) + 4.0 * n * n * d
    cells = 2.0 * n_cells * 3 * tower.patch_size**2 * d
    projector = 2.0 * n_cells * cfg.d_model * (d + cfg.d_model)
    return last * layer + cells + projector


def _tower(cfg: ModelConfig) -> VisionConfig:
    tower = cfg.vision
    if tower is None or tower.kind != "vit" or tower.spatial_merge != 1:
        raise ConfigError(
            f"the arithmetic is that of a CLIP tower; {cfg.architecture} has none. Choose a LLaVA-1.5."
        )
    return tower


@dataclass(frozen=True, kw_only=True)
class Costs:
    """FLOP of a model's parts: one mask by the engine, one whole forward, tower and projector."""

    mask: float
    forward: float
    tower: float

    @classmethod
    def of(cls, plan: Plan) -> "Costs":
        """The costs of a plan's model and prompt."""
        cfg = config_of(plan)
        parts = parts_of(cfg, plan)
        return cls(
            mask=batch_work(cfg, parts, n_masks=BATCH).total / BATCH,
            forward=forward_work(cfg, parts, all_logits=False).total,
            tower=tower_work(cfg),
        )

    @property
    def once(self) -> float:
        """What every prompt needs: tower, prefix, and the self-check."""
        return self.tower + (1 + CHECKED) * self.forward + CHECKED * self.mask


# --- 2


def masks_needed(n_heads: int, r: float, r2: float, excess: float = 1.0) -> float:
    """N(r); ``excess`` is f."""
    return n_heads * (1 + excess * (1 - r2) / r2 * r**2 / (1 - r**2))


def in_blocks(n: float | int, n_heads: int) -> int:
    """So many masks in whole Hadamard blocks."""
    block = block_size(n_heads, "hadamard")
    return -(-int(n) // block) * block


# --- 3


def ways(plan: Plan) -> dict[str, tuple[float | int, float]]:
    """Way of attribution → masks per image, and FLOP per image."""
    cfg, costs = config_of(plan), Costs.of(plan)
    heads = cfg.n_layers * cfg.n_heads
    low, high = TARGETS
    judged = HELD_OUT + ENDS
    independent = {r: masks_needed(heads, r, plan.r2) for r in TARGETS}
    paired = {r: masks_needed(heads, r, plan.r2, 2 * plan.odd) for r in TARGETS}
    few, pooled = plan.prior * heads, paired[high] / plan.pool

    def engine(n: float | int, more: float = 0.0) -> tuple[float | int, float]:
        return n, costs.once + n * costs.mask + more

    return {
        f"whole forwards, independent masks, r = {high}": (
            independent[high] + judged,
            costs.tower + (independent[high] + judged) * costs.forward,
        ),
        f"engine, independent masks, r = {high}": engine(independent[high] + judged),
        f"engine, Hadamard blocks, r = {high}": engine(in_blocks(paired[high], heads) + judged),
        f"engine, complementary pairs, r = {high}": engine(paired[high] + judged),
        f"engine, complementary pairs, r = {low}": engine(paired[low] + judged),
        f"engine, gradients of gates as prior, {plan.prior:g} masks per head": engine(
            few + judged, GATE_PASSES * costs.forward
        ),
        f"engine, one map for {plan.pool} images, r = {high}": engine(pooled + judged / plan.pool),
    }


# --- tables


def assumptions(plan: Plan) -> str:
    """What is assumed, as a table."""
    meaning = {
        "model": ("model", plan.model),
        "images": ("images, one question each", f"{plan.images:,}"),
        "system": ("tokens before the image", str(plan.system)),
        "suffix": ("tokens behind the image (S)", str(plan.suffix)),
        "r2": ("linear share of the metric's variance (R²)", f"{plan.r2:g}"),
        "odd": ("odd orders' share of the rest", f"{plan.odd:g}"),
        "peak": (
            "peak rate of a GPU (A100 in bfloat16, as stated by its vendor)",
            f"{plan.peak / 1e12:g} TFLOP/s",
        ),
        "utilisation": ("share of the peak that is reached", f"{plan.utilisation:.0%}"),
        "prior": ("masks per head that are enough with a prior", f"{plan.prior:g}"),
        "pool": ("images that share one map, if pooled", str(plan.pool)),
        "folder": ("units per folder", f"{plan.folder:,}"),
        "disk": ("reading of a folder's files", f"{plan.disk / 1e6:g} MB/s"),
        "decoding": ("images decoded and digested by a process", f"{plan.decoding} per s"),
    }
    rows = [[*meaning[field.name], f"`--{field.name}`"] for field in fields(plan)]
    return markdown_table(["assumed", "value", "option"], rows)


def work_table(plan: Plan) -> str:
    """Step 1."""
    cfg = config_of(plan)
    costs, parts = Costs.of(plan), parts_of(cfg, plan)
    prefix = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head * (parts.n_pos - parts.n_suffix) * 2
    rows = [
        ["heads (D)", f"{cfg.n_layers} × {cfg.n_heads} = {cfg.n_layers * cfg.n_heads:,}"],
        ["image tokens", f"{parts.n_image:,}"],
        ["a whole forward pass of the decoder", f"{costs.forward / 1e12:.2f} TFLOP"],
        *(
            [f"a mask by the engine, S = {n}", f"{Costs.of(replace(plan, suffix=n)).mask / 1e12:.3f} TFLOP"]
            for n in sorted({*SUFFIXES, plan.suffix})
        ),
        [f"forward pass / mask, S = {plan.suffix}", f"{costs.forward / costs.mask:.1f}"],
        ["vision tower and projector", f"{costs.tower / 1e12:.2f} TFLOP"],
        [
            f"once per image: tower, prefix, self-check ({CHECKED} masks both ways)",
            f"{costs.once / 1e12:.1f} TFLOP",
        ],
        ["keys and values of the prefix, bfloat16, whatever the number of masks", byte_text(prefix)],
        ["the same for 64 masks, were it expanded", byte_text(64 * prefix)],
    ]
    return markdown_table(["one image", ""], rows)


def masks_table(plan: Plan) -> str:
    """Step 2."""
    cfg = config_of(plan)
    heads = cfg.n_layers * cfg.n_heads
    rows = []
    for r in TARGETS:
        plain = masks_needed(heads, r, plan.r2)
        paired = masks_needed(heads, r, plan.r2, 2 * plan.odd)
        cells = [f"{plain:,.0f}", f"{paired:,.0f}", f"{in_blocks(paired, heads):,}"]
        rows.append([f"{r:g}", *cells])
    block = block_size(heads, "hadamard")
    header = ["r", "independent", "with complements", f"in whole Hadamard blocks of {block:,}"]
    return markdown_table(header, rows)


def time_table(plan: Plan) -> str:
    """Step 3."""
    rate, once = plan.peak * plan.utilisation, Costs.of(plan).once
    rows = []
    for way, (n_masks, flop) in ways(plan).items():
        seconds = flop / rate
        share = "" if way.startswith("whole") else f"{once / flop:.0%}"
        rows.append(
            [
                way,
                f"{n_masks:,.0f}",
                f"{flop / 1e12:,.0f}",
                share,
                f"{seconds:,.1f}",
                f"{seconds * plan.images / 3600:,.0f}",
            ]
        )
    header = ["way", "masks per image", "TFLOP per image", "of it once per image", "GPU seconds per image"]
    return markdown_table([*header, f"GPU-hours for {plan.images:,}"], rows)


def storage_table(plan: Plan) -> str:
    """Step 4."""
    cfg = config_of(plan)
    small = measured_unit()
    large = enlarged(small, cfg, n_pos=parts_of(cfg, plan).n_pos, grid=_tower(cfg).grid)
    rows = [
        [
            part,
            _size(small.parts[part]),
            _size(large.parts[part]),
            _size(large.parts[part] * plan.images),
        ]
        for part in small.parts
    ]
    rows.append(
        [
            "a unit",
            _size(small.n_bytes),
            _size(large.n_bytes),
            _size(large.n_bytes * plan.images),
        ]
    )
    header = ["part of a unit's file", f"`{EMBEDDED}`, measured", plan.model, f"{plan.images:,} units"]
    folders = -(-plan.images // plan.folder)
    seconds = max(flop for way, (_, flop) in ways(plan).items() if way.startswith("engine")) / (
        plan.peak * plan.utilisation
    )
    facts = [
        ["folders, each a sweep of its own", f"{folders:,}"],
        ["files in a folder", f"{plan.folder + 1:,}"],
        ["a folder", _size(large.n_bytes * plan.folder)],
        ["its manifest", _size(large.line * plan.folder)],
        ["the manifest, were all units in one folder", _size(large.line * plan.images)],
        [
            "going on with a folder: files read again, for their checksums",
            f"{large.n_bytes * plan.folder / plan.disk:,.0f} s",
        ],
        [
            "and images decoded again, for their units' addresses",
            f"{plan.folder / plan.decoding:,.0f} s",
        ],
        [
            "lost per process when killed, at most",
            f"one image, {seconds:,.0f} GPU seconds by the engine's costliest way",
        ],
    ]
    return "\n\n".join((markdown_table(header, rows), markdown_table(["folders", ""], facts)))


def _size(n: float | int) -> str:
    """Bytes in decimal units, as disks are sold."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n >= unit:
            return f"{n / unit:,.1f} {name}"
    return f"{n / 1e3:,.1f} kB"


def report(plan: Plan) -> str:
    """All tables, in Markdown.

    Args:
        plan: the assumptions.

    Raises:
        ConfigError: a model without a CLIP tower.
    """
    return "\n\n".join(
        (assumptions(plan), work_table(plan), masks_table(plan), time_table(plan), storage_table(plan))
    )


def main(given: list[str] | None = None) -> None:
    """Parse the command line, calculate and print."""
    parser = argparse.ArgumentParser(prog="python -m mmlens.recipes.million_images", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for field in fields(Plan):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    typer.echo(report(Plan(**vars(parser.parse_args(given)))))


if __name__ == "__main__":
    main()
