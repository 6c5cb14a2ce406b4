"""``mmlens lens``: logit lens, direct logit attribution and attention maps."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmlens.cli.app import app, command_line
from mmlens.cli.options import ModelName, Progress, Seed
from mmlens.cli.prompts import prompts_about
from mmlens.errors import InputError


@app.command()
def lens(
    image: Annotated[Path | None, typer.Argument(help="Image file; default: scenes.")] = None,
    question: Annotated[str | None, typer.Option(help="Question about the image.")] = None,
    model: ModelName = "scenes",
    answer: Annotated[str | None, typer.Option(help="Answer to follow; default: the model's own.")] = None,
    foil: Annotated[
        str | None, typer.Option(help="Wrong answer; with it, differences of logits are explained.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Without an image: number of scenes.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder for results and figures.")] = Path("out/lens"),
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Logit lens, direct logit attribution and attention maps, over layers and over the picture."""
    from mmlens.datasets import scenes
    from mmlens.inputs import load_image
    from mmlens.model import HookedVLM
    from mmlens.recipes.lens_study import lenses, save_lenses

    if image is None and (question or answer or foil):
        raise InputError("--question, --answer and --foil are about an image; give one.")
    if image is not None and not question:
        raise InputError("an image needs a --question about it.")
    pictures = [] if image is None else [load_image(image)]
    vlm = HookedVLM.from_pretrained(model)
    prompts: Any = (
        prompts_about(vlm, pictures, question or "", answer, foil)
        if pictures
        else scenes.prompts("heldout", samples, family="main", seed=seed)
    )
    metric = "logit" if pictures and foil is None else "logit_diff"
    results = lenses(vlm, prompts, metric=metric, seed=seed, progress=progress)
    pages = save_lenses(results, out, command=command_line())
    for result in results.values():
        typer.echo(result.headline())
    typer.echo(f"figures: {', '.join(str(page) for page in pages)}")
