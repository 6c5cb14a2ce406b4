"""The application that commands register with, its entry point and what it says of itself."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmlens.errors import MMLensError

app = typer.Typer(
    name="mmlens",
    help="Which attention heads and tokens carry image information into text, in vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Entry point: mmlens's own errors become one line and exit status 1."""
    try:
        app()
    except MMLensError as error:
        complain(error)
        raise SystemExit(1) from None


def complain(error: MMLensError) -> None:
    """An error as one line on standard error."""
    typer.echo(f"mmlens: {type(error).__name__}: {error}", err=True)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Which attention heads and tokens carry image information into text, in vision-language models."""
    if version:
        from mmlens import __version__

        typer.echo(__version__)
        raise typer.Exit()


def command_line() -> str:
    """The command as it was typed, for the provenance of results."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
