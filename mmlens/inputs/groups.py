"""Token groups from regions: object, background and the user's own."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from mmlens.errors import RegionError
from mmlens.inputs.grid import ImageGrid
from mmlens.inputs.regions import Region, check_region, covered_cells


def region_groups(
    regions: Mapping[str, Sequence[Region]],
    roles: Sequence[str],
    grids: Sequence[ImageGrid],
    *,
    min_coverage: int | float = 0.0,
    where: str = "",
) -> dict[str, Bool[np.ndarray, "pos"]]:
    """Token groups of one sample's regions.

    A cell belongs to a region if it overlaps it; with ``min_coverage`` above 0, if at least that fraction of
    the cell is covered by one of the region's boxes or masks. "background" is derived from "object": every
    image token of the sample that is not in it. With several images, "image_0", "image_1", … are groups, too.

    Args:
        regions: name → boxes and masks.
        roles: role of every position.
        grids: where the images lie.
        min_coverage: fraction of a cell, 0 to 1.
        where: start of error messages, as "sample 2: ".

    Returns:
        Name → True at the group's positions.

    Raises:
        RegionError: a region outside its image, or in a part that the processor crops away.
    """
    sizes = {grid.image_index: grid.size for grid in grids}
    groups: dict[str, np.ndarray] = {}
    for name, members in regions.items():
        groups[name] = np.zeros(len(roles), dtype=bool)
        for region in members:
            check_region(region, [sizes[index] for index in sorted(sizes)], f"{where}region {name!r}")
            for grid in grids:
                if grid.image_index == region.image:
                    groups[name][grid.positions[covered_cells(region, grid.boxes, min_coverage)]] = True
        if not groups[name].any():
            raise RegionError(
                f"{where}region {name!r} covers no image cell: it lies in a part that the image processor "
                f"crops away, or covers less than min_coverage={min_coverage} of every cell."
            )
    if "object" in groups and "background" not in groups:
        groups["background"] = (np.asarray(roles) == "image") & ~groups["object"]
    if len(sizes) > 1:
        for grid in grids:
            own = groups.setdefault(f"image_{grid.image_index}", np.zeros(len(roles), dtype=bool))
            own[grid.positions] = True
    return groups
