"""``mmlens info`` and ``mmlens verify``: what a model is, and whether it computes what Hugging Face's does."""

from typing import Annotated

import typer

from mmlens.cli.app import app
from mmlens.cli.options import Dtype
from mmlens.errors import InputError


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Embedded name, local folder or hub id.")],
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt length, image tokens included; default: the images and a question."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="Images in the prompt; default: 1, if the model reads images.")
    ] = None,
    image_size: Annotated[str, typer.Option(help="Their size in pixels, WIDTHxHEIGHT.")] = "640x480",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of activations; default: the stored one, float32 for halves.")
    ] = None,
    hooks: Annotated[bool, typer.Option(help="List every hook point.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Sizes, hook names and memory estimate of a model, without loading its weights."""
    import torch

    from mmlens.config import ModelConfig
    from mmlens.loading import open_checkpoint
    from mmlens.model import HookedVLM
    from mmlens.model.describe import describe
    from mmlens.model.packed_hf import refuse_packed_files
    from mmlens.model.prompt_size import layouts_of

    checkpoint = open_checkpoint(model, revision=revision)
    refuse_packed_files(checkpoint.hf_config, checkpoint.model_id)
    cfg = ModelConfig.from_hf(checkpoint.hf_config)
    processor = checkpoint.processor()
    if processor is None and cfg.is_multimodal:
        typer.echo("The checkpoint has no processor: image tokens are those of typical settings.\n", err=True)
    n_images = int(cfg.is_multimodal) if images is None else images
    layouts = layouts_of(cfg, [_pixels(image_size)] * n_images, processor)
    stored = next(iter(checkpoint.tensors.values())).dtype
    with torch.device("meta"):
        empty = HookedVLM(cfg, model_id=checkpoint.model_id).to(dtype=stored)
    compute = None if dtype is None else getattr(torch, dtype.value)
    typer.echo(describe(empty, layouts, n_pos=tokens, dtype=compute, all_hooks=hooks))


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Embedded name, local folder or hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Hold a model against the unmodified Hugging Face model; exit status 1 if they differ."""
    from mmlens.reference import verify as run_verify

    report = run_verify(model, revision=revision)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


def _pixels(size: str) -> tuple[int, int]:
    """Height and width of ``WIDTHxHEIGHT``."""
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise InputError(f"--image-size {size!r} must be WIDTHxHEIGHT in pixels, such as 640x480.")
    return int(height), int(width)
