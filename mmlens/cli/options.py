"""Types of options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Baseline(StrEnum):
    """What an ablated head reads in place of the image."""

    mean_image_tokens = "mean_image_tokens"
    knockout = "knockout"
    zero = "zero"


class Dtype(StrEnum):
    """What activations are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Images = Annotated[list[Path] | None, typer.Argument(help="Image files; default: scenes, held-out split.")]
Family = Annotated[str, typer.Option(help="Without images: question family: main, colour, count, …")]
ModelName = Annotated[str, typer.Option(help="Embedded name, local folder or hub id.")]
Seed = Annotated[int, typer.Option(help="Seed of masks, random heads and bootstrap.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
