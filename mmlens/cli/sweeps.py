"""``mmlens sweep`` and ``mmlens collect``: analyses that may be killed at any moment, and go on where they were.

1. What is asked is looked through before the model is loaded.
2. Images without an answer get the model's own.
3. The sweep, its report, and all samples in one file if that is wanted.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlens.cli.app import app, command_line, complain
from mmlens.cli.options import Family, Images, ModelName, Progress
from mmlens.cli.prompts import with_own_answers
from mmlens.errors import ConfigError, InputError, MMLensError, SweepError

if TYPE_CHECKING:
    from mmlens.sweeps import Executor, Job, SweepReport

_SOME_FAILED, _COULD_NOT, _INTERRUPTED = 1, 2, 130


class Where(StrEnum):
    """Where units run."""

    serial = "serial"
    ray = "ray"


LeaveOut = Annotated[bool, typer.Option("--leave-out", help="Collect what is there, if samples are missing.")]


@app.command()
def sweep(
    analysis: Annotated[str, typer.Argument(help="Name of mmlens.analyses, or package.module:function.")],
    folder: Annotated[Path, typer.Argument(help="Folder of this sweep; made if it is not there.")],
    images: Images = None,
    question: Annotated[str | None, typer.Option(help="Question about each image.")] = None,
    answer: Annotated[str | None, typer.Option(help="Its answer; default: the model's own.")] = None,
    foil: Annotated[str | None, typer.Option(help="Wrong answer, for differences of logits.")] = None,
    family: Family = "main",
    change: Annotated[str | None, typer.Option(help="Pairs of scenes: object, colour or count.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Without images: scenes.")] = 32,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the analysis, in JSON.")] = None,
    model: ModelName = "scenes",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: cpu, or cuda with --gpus.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: every n-th sample from the i-th on.")] = "1/1",
    executor: Annotated[Where, typer.Option(help="This process, or Ray actors.")] = Where.serial,
    actors: Annotated[int | None, typer.Option(min=1, help="Ray actors; default: 2.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each actor; default: 0.")] = None,
    address: Annotated[str | None, typer.Option(help="Running Ray cluster; default: a new one.")] = None,
    seed: Annotated[int, typer.Option(help="Of scenes, and of the analysis if it takes one.")] = 0,
    collect: Annotated[Path | None, typer.Option(help="File for all samples as one result.")] = None,
    leave_out: LeaveOut = False,
    progress: Progress = True,
) -> None:
    """Run an analysis sample by sample into a folder; run it again after any interruption and it goes on.

    Exit status 0: all samples of the shard are done.
    1: some failed; they are listed with the reason, and the next run tries again.
    2: the sweep could not run, or its samples could not be collected.
    130: Ctrl-C, which loses nothing.
    """
    pictures = {"images": images or [], "question": question, "answer": answer, "foil": foil}
    scene = {"family": family, "change": change, "n": samples, "seed": seed}
    where = {"n_actors": actors, "num_gpus": gpus, "address": address}
    status = _COULD_NOT
    try:
        job = _job(analysis, option or [], model, seed)
        given = {"revision": revision, "device": device, "shard": shard, "progress": progress}
        report = _run(job, _prompts(job, pictures, scene), folder, _executor(executor, where, device), given)
        status = _tell(report)
        if collect is not None:
            _save(folder, collect, leave_out)
    except MMLensError as error:
        complain(error)
        status = status or _COULD_NOT
    except KeyboardInterrupt:
        typer.echo(_interrupted(folder), err=True)
        status = _INTERRUPTED
    raise typer.Exit(status)


@app.command("collect")
def collect_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, typer.Argument(help="File for all its samples as one result.")],
    leave_out: LeaveOut = False,
) -> None:
    """Write all samples of a sweep as one result, as the analysis of all prompts returns it."""
    _save(folder, out, leave_out)


# --- 1. what is asked


def _job(analysis: str, given: Sequence[str], model: str, seed: int) -> "Job":
    """The analysis with its options; the weights are not known yet."""
    from mmlens.sweeps import Job

    job = Job(analysis=analysis, options=_options(given), model_id=model, fingerprint="")
    return replace(job, options={"seed": seed, **job.options}) if job.takes("seed") else job


def _options(given: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` by name; a value that is no JSON is a word."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise ConfigError(f"--option {text!r} must be NAME=VALUE, each name once, as in n_masks=128.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            if value in ("True", "False", "None") or value[:1] in tuple('[{"'):
                raise ConfigError(
                    f"--option {text!r} is no JSON: write true, false or null, and quote the names in lists, as in "
                    """'heads=["a", "b"]'."""
                ) from None
            found[name] = value
    return found


def _prompts(job: "Job", pictures: dict[str, Any], scene: dict[str, Any]) -> list[Any]:
    """Prompts about images, scenes, or pairs of scenes for an analysis of pairs."""
    from mmlens.datasets import scenes
    from mmlens.inputs import Prompt

    images, question, change = pictures.pop("images"), pictures["question"], scene.pop("change")
    if bool(images) != (question is not None) or (not images and any(pictures.values())):
        raise InputError("images and a --question belong together; give both, or neither for scenes.")
    if job.takes("corrupt") != (change is not None):
        raise InputError(
            f"{job.analysis} compares pairs: give --change object, colour or count for pairs of scenes; pairs of your "
            "own images are swept from Python, with mmlens.sweep."
            if change is None
            else f"{job.analysis} takes no pairs: leave --change out."
        )
    if images and change:
        raise InputError("--change is about scenes: leave it out, or the images.")
    n, seed = scene["n"], scene["seed"]
    if images:
        prompts: list[Any] = [Prompt(image=str(image), **pictures) for image in images]
    elif change:
        prompts = scenes.paired_prompts("heldout", n, change=change, seed=seed)
    else:
        prompts = scenes.prompts("heldout", n, family=scene["family"], seed=seed)
    job.check_samples(prompts)
    return prompts


def _executor(kind: Where, where: dict[str, Any], device: str | None) -> "Executor | None":
    from mmlens.sweeps import RayExecutor

    told = {name: value for name, value in where.items() if value is not None}
    if kind is Where.ray:
        return RayExecutor(**told, device=device)
    if told:
        raise ConfigError("--actors, --gpus and --address are about --executor ray.")
    return None


# --- 2. and 3. the sweep


def _run(
    job: "Job", prompts: list[Any], folder: Path, executor: "Executor | None", given: dict[str, Any]
) -> "SweepReport":
    """Loads the model here; actors load it again, where they are."""
    from mmlens.model import HookedVLM
    from mmlens.sweeps import sweep

    device = None if executor else given["device"]
    model = HookedVLM.from_pretrained(job.model_id, revision=given["revision"], device=device)
    prompts = with_own_answers(model, prompts, progress=given["progress"])
    running = {"executor": executor, "shard": given["shard"], "progress": given["progress"]}
    return sweep(model, prompts, job.analysis, folder, job.options, **running)


def _tell(report: "SweepReport") -> int:
    """Prints the report; the exit status that it means."""
    typer.echo(report.headline())
    for number, reason in report.poison.items():
        typer.echo(f"  sample {number}: {reason}")
    return _SOME_FAILED if report.poison else 0


def _save(folder: Path, out: Path, leave_out: bool) -> None:
    from mmlens.sweeps import collect

    result = collect(folder, missing="leave_out" if leave_out else "error")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"cannot make the folder {out.parent}: {error.strerror or error}.") from error
    info = result.info.model_copy(update={"command": command_line()})
    typer.echo(f"{result.n} samples collected: {replace(result, info=info).save(out)}")


def _interrupted(folder: Path) -> str:
    from mmlens.sweeps import SweepFolder

    n = SweepFolder(path=folder).n_units()
    return f"mmlens: interrupted. {n} finished samples in {folder} are whole; the same command goes on from there."
