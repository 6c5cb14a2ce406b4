"""``mmlens flow``: information flow."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmlens.cli.app import app, command_line
from mmlens.cli.options import Family, Images, ModelName, Progress, Seed


@app.command()
def flow(
    images: Images = None,
    question: Annotated[str | None, typer.Option(help="Question about each image.")] = None,
    answer: Annotated[str | None, typer.Option(help="Its answer; default: the model's own.")] = None,
    family: Family = "main",
    samples: Annotated[int, typer.Option(min=1, help="Without images: scenes.")] = 32,
    model: ModelName = "scenes",
    edge: Annotated[list[str] | None, typer.Option(help="Such as image->final; may be repeated.")] = None,
    mode: Annotated[str, typer.Option(help="window, from, up_to or only.")] = "window",
    window: Annotated[int | None, typer.Option(help="Layers closed together; default: 9 of 32.")] = None,
    metric: Annotated[str, typer.Option(help="prob, logit, log_prob, logit_diff, …")] = "prob",
    correct_only: Annotated[bool, typer.Option(help="Leave out wrong answers.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results and figures.")] = Path("out/flow"),
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Information flow: what each edge between token groups carries, layer by layer, beside attention weight."""
    from mmlens.recipes.flow_study import flow_study, save_flow

    options: dict[str, Any] = {"mode": mode, "window": window, "metric": metric, "correct_only": correct_only}
    options |= {"seed": seed} | ({"edges": edge} if edge else {})
    given = (model, images or [], question, answer, {"family": family, "n": samples, "seed": seed})
    results = flow_study(*given, progress=progress, **options)
    typer.echo(f"figures: {save_flow(*results, out, command=command_line())}\n{results[0].headline()}")
    typer.echo(f"samples: {results[0].n}, left out: {results[0].data.attrs['n_left_out']}")
