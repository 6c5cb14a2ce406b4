"""``mmlens demo`` and ``mmlens attribute``: head attribution with evidence and control, and its report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmlens.cli.app import app, command_line
from mmlens.cli.options import Baseline, ModelName, Progress, Seed
from mmlens.cli.prompts import prompts_about


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("out/demo"),
    samples: Annotated[int, typer.Option(min=1, help="Prompts to attribute.")] = 12,
    heldout: Annotated[int, typer.Option(min=1, help="Other prompts to judge the rankings on.")] = 24,
    per_family: Annotated[int, typer.Option(min=1, help="Prompts per family for the accuracies.")] = 200,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Run the main job on the embedded model: head attribution with evidence and control, and its report."""
    from mmlens.datasets import scenes
    from mmlens.model import HookedVLM
    from mmlens.recipes import attribution_study, save_study

    model = HookedVLM.from_pretrained("scenes")
    study = attribution_study(
        model,
        scenes.prompts("attribution", samples, family="main", seed=seed),
        heldout=scenes.prompts("heldout", heldout, family="main", seed=seed),
        families={
            family: scenes.prompts("heldout", per_family, family=family, seed=seed + 1)
            for family in scenes.FAMILIES
        },
        dataset="scenes, held-out split",
        seed=seed,
        progress=progress,
    )
    report = save_study(
        study, out, title="Which heads carry the image into the answer?", command=command_line()
    )
    _announce(study.attribution, report)


@app.command()
def attribute(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Option(help="Question about the image.")],
    model: ModelName = "scenes",
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("out/attribute"),
    answer: Annotated[str | None, typer.Option(help="Answer to explain; default: the model's own.")] = None,
    foil: Annotated[str | None, typer.Option(help="Wrong answer, for --metric logit_diff.")] = None,
    metric: Annotated[str, typer.Option(help="logit, logit_diff, margin, log_prob, prob, …")] = "logit",
    baseline: Annotated[Baseline, typer.Option(help="What ablated heads read.")] = Baseline.mean_image_tokens,
    masks: Annotated[int | None, typer.Option(min=1, help="Head masks; default: until reliable.")] = None,
    heldout: Annotated[
        list[Path] | None, typer.Option(help="Another image to judge the ranking on; may be repeated.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Repeat on a random-weight twin.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    seed: Seed = 0,
    progress: Progress = True,
) -> None:
    """Attribute one answer about one image to attention heads, and write the report."""
    from mmlens.inputs import load_image
    from mmlens.model import HookedVLM
    from mmlens.recipes import attribution_study, save_study

    pictures = [load_image(path) for path in (image, *(heldout or []))]
    vlm = HookedVLM.from_pretrained(model, revision=revision)
    inputs = prompts_about(vlm, pictures, question, answer, foil)
    study = attribution_study(
        vlm,
        inputs.select([0]),
        heldout=inputs.select(range(1, len(pictures))) if heldout else None,
        metric=metric,
        baseline=baseline.value,
        n_masks=masks or "auto",
        control=control,
        seed=seed,
        progress=progress,
    )
    report = save_study(study, out, title=f"{question} ({image.name})", command=command_line())
    _announce(study.attribution, report)


def _announce(attribution: Any, report: Path) -> None:
    r2 = attribution.r2.median().item()
    typer.echo(attribution.top(5).to_string())
    over = f" (median of {attribution.n} prompts)" if attribution.n > 1 else ""
    typer.echo(f"held-out R² of the fit: {r2:.3f}{over}")
    typer.echo(f"report: {report}")
