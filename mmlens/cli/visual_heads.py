"""``mmlens heads``: visual heads."""

from pathlib import Path
from typing import Annotated

import typer

from mmlens.cli.app import app, command_line
from mmlens.cli.options import Family, Images, ModelName, Progress, Seed


@app.command()
def heads(
    images: Images = None,
    question: Annotated[str | None, typer.Option(help="Question about each image.")] = None,
    family: Family = "count",
    samples: Annotated[int, typer.Option(min=1, help="Without images: scenes.")] = 128,
    model: ModelName = "scenes",
    query: Annotated[str, typer.Option(help="Whose row: first_generated or final.")] = "first_generated",
    score: Annotated[
        str, typer.Option(help="reconstruction, weight_concentration, image_weight or concentration.")
    ] = "reconstruction",
    folder: Annotated[
        Path | None, typer.Option(help="Folder for values per sample, from which a stopped run goes on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts run together.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the result and its figures.")] = Path("out/heads"),
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Visual heads: which heads look at the image when the answer is made, how much and how narrowly."""
    from mmlens.recipes.visual_heads_study import heads_study, save_heads

    result = heads_study(
        model,
        images or [],
        question,
        {"family": family, "n": samples, "seed": seed},
        **{"query": query, "score": score, "folder": folder, "batch_size": batch_size},
        seed=seed,
        progress=progress,
    )
    page = save_heads(result, out, command=command_line())
    typer.echo(result.top(5).to_string())
    typer.echo(f"samples: {result.n}, left out: {result.data.attrs['n_left_out']}")
    for index, reason in result.left_out.items():
        typer.echo(f"  {index}: {reason}")
    typer.echo(f"figures: {page}")
