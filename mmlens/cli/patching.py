"""``mmlens patch``: activation patching."""

from pathlib import Path
from typing import Annotated

import typer

from mmlens.cli.app import app, command_line
from mmlens.cli.options import ModelName, Progress, Seed
from mmlens.errors import InputError


@app.command()
def patch(
    clean: Annotated[Path | None, typer.Argument(help="Clean image; default: pairs of scenes.")] = None,
    corrupt: Annotated[Path | None, typer.Argument(help="Corrupt image; default: clean in noise.")] = None,
    question: Annotated[str | None, typer.Option(help="Question about both images.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Answer to the clean image; default: the model's own.")
    ] = None,
    foil: Annotated[
        str | None, typer.Option(help="Answer to the corrupt image; default: the model's own.")
    ] = None,
    change: Annotated[
        str, typer.Option(help="Without images: what differs in the scenes: object, colour or count.")
    ] = "object",
    samples: Annotated[int, typer.Option(min=1, help="Without images: pairs of scenes.")] = 32,
    model: ModelName = "scenes",
    site: Annotated[str, typer.Option(help="z, q, k, v, pattern, resid_post, mlp_out, vision.z, …")] = "z",
    by: Annotated[str | None, typer.Option(help="head, group or pos; default: head where there are.")] = None,
    direction: Annotated[str, typer.Option(help="denoise or noise.")] = "denoise",
    metric: Annotated[str, typer.Option(help="logit_diff, logit, prob, log_prob or kl.")] = "logit_diff",
    window: Annotated[int, typer.Option(min=1, help="Layers patched together.")] = 1,
    noise: Annotated[
        float, typer.Option(help="With one image: width of the noise in standard deviations of its pixels.")
    ] = 3.0,
    out: Annotated[Path, typer.Option(help="Folder for the result and its figures.")] = Path("out/patch"),
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Activation patching between a clean and a corrupt image, or between edited scenes."""
    from mmlens.recipes.patching_study import patching_study, save_patching

    if clean is None and (question or answer or foil):
        raise InputError("--question, --answer and --foil are about images; give one or two.")
    if clean is not None and not question:
        raise InputError("images need a --question about them.")
    pair = {"clean": clean, "corrupt": corrupt, "question": question, "answer": answer, "foil": foil}
    result = patching_study(
        model,
        None if clean is None else pair | {"noise": noise, "seed": seed},
        {"change": change, "n": samples, "seed": seed},
        **{"site": site, "by": by, "direction": direction, "metric": metric, "window": window},
        seed=seed,
        progress=progress,
    )
    figure = save_patching(result, out, command=command_line())
    typer.echo(result.top(5).to_string())
    typer.echo(f"left out for want of a difference: {result.data.attrs['left_out']}")
    typer.echo(f"figure: {figure}")
