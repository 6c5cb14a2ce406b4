"""LLaVA-1.5: one square view per image, its cells row by row in one unbroken run of image tokens."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mmlens.config import ModelConfig
from mmlens.errors import ConfigError, MissingPixels, ShapeError, UnexpectedPixels
from mmlens.inputs.geometry import ImageGeometry
from mmlens.inputs.grid import ImageGrid

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% "
    "endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% "
    "endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The prompt form of LLaVA-1.5, ``USER: <image>\\n{question} ASSISTANT:``, for processors without a
template."""


def pack(
    positions: Int[np.ndarray, "n_image_tokens"], geometries: Sequence[ImageGeometry], cfg: ModelConfig
) -> tuple[ImageGrid, ...]:
    """Gives every image token its cell.

    Args:
        positions: token positions of one sample's image tokens, ascending.
        geometries: how each of its images was laid into the pixel values, in order.
        cfg: shape of the model.

    Returns:
        One grid per image. A class token that the model keeps (``drop_cls=False``) belongs to no cell.

    Raises:
        MissingPixels: fewer images than the image tokens stand for.
        UnexpectedPixels: more images than that.
        ConfigError: the processor writes another number of tokens per image than the model makes.
        ShapeError: the pixel values have another size than the tower takes.
    """
    vision = cfg.vision
    n_extra = 0 if vision.drop_cls else 1
    n_tokens = vision.grid**2 + n_extra
    _check_count(len(positions), len(geometries), n_tokens, cfg)
    grids = []
    for index, geometry in enumerate(geometries):
        if geometry.processed != (vision.image_size, vision.image_size):
            raise ShapeError(
                f"image {index} reaches the tower as {geometry.processed[1]}×{geometry.processed[0]} "
                f"pixels, but it takes {vision.image_size}×{vision.image_size}: set the image processor's "
                "size and crop_size."
            )
        run = positions[index * n_tokens + n_extra : (index + 1) * n_tokens]
        grids.append(
            ImageGrid(
                positions=run.reshape(vision.grid, vision.grid),
                boxes=geometry.cell_boxes(vision.grid, vision.grid, vision.patch_size),
                size=geometry.size,
                image_index=index,
            )
        )
    return tuple(grids)


def _check_count(n_positions: int, n_images: int, n_tokens: int, cfg: ModelConfig) -> None:
    if n_positions == n_images * n_tokens:
        return
    if n_images == 0 or (n_positions % n_tokens == 0 and n_positions > n_images * n_tokens):
        raise MissingPixels(
            f"{n_positions} image tokens, but {n_images} image(s) to fill {n_tokens} of them each: give one "
            "image for each placeholder."
        )
    if n_positions % n_tokens == 0:
        raise UnexpectedPixels(
            f"{n_images} image(s), but image tokens for {n_positions // n_tokens}: leave no image without a "
            "placeholder that reads it, or let prepare() write the prompt."
        )
    vision = cfg.vision
    raise ConfigError(
        f"{n_positions} image tokens for {n_images} image(s), but the model makes {n_tokens} features of "
        f"each ({vision.image_size} px in cells of {vision.patch_size} px). Check the processor: "
        f"patch_size={vision.patch_size}, "
        f"vision_feature_select_strategy={'default' if vision.drop_cls else 'full'!r}, "
        "num_additional_image_tokens=1."
    )
