"""Groups from regions."""

import numpy as np
import pytest

from mmlens.errors import RegionError
from mmlens.inputs.geometry import ImageGeometry
from mmlens.inputs.grid import ImageGrid
from mmlens.inputs.groups import region_groups
from mmlens.inputs.regions import Box, RegionMask

GEOMETRY = ImageGeometry(
    size=(4, 8), processed=(4, 4), scale=(1.0, 1.0), offset=(0.0, -2.0)
)  # crops 2 on each side
ROLES = ("pad", "system", *("image",) * 4, *("image",) * 4, "final")


def grids():
    boxes = GEOMETRY.cell_boxes(2, 2, 2)
    return [
        ImageGrid(positions=np.arange(2, 6).reshape(2, 2), boxes=boxes, size=(4, 8)),
        ImageGrid(positions=np.arange(6, 10).reshape(2, 2), boxes=boxes, size=(4, 8), image_index=1),
    ]


def at(mask):
    return np.flatnonzero(mask).tolist()


def test_object_background_and_images():
    groups = region_groups({"object": (Box(left=2, top=0, right=4, bottom=2),)}, ROLES, grids())
    assert {name: at(mask) for name, mask in groups.items()} == {
        "object": [2],
        "background": [3, 4, 5, 6, 7, 8, 9],
        "image_0": [2, 3, 4, 5],
        "image_1": [6, 7, 8, 9],
    }


def test_several_members_are_united_and_the_users_background_stays():
    mask = np.zeros((4, 8), bool)
    mask[3, 5] = True
    members = (Box(left=2, top=0, right=4, bottom=2), RegionMask(mask=mask, image=1))
    background = (Box(left=0, top=0, right=8, bottom=4),)
    groups = region_groups({"object": members, "background": background}, ROLES, grids())
    assert at(groups["object"]) == [2, 9]
    assert at(groups["background"]) == [2, 3, 4, 5]


def test_no_regions_no_groups():
    assert region_groups({}, ROLES[:6], grids()[:1]) == {}


def test_min_coverage():
    box = (Box(left=2, top=0, right=5, bottom=4),)
    assert at(region_groups({"a": box}, ROLES, grids())["a"]) == [2, 3, 4, 5]
    assert at(region_groups({"a": box}, ROLES, grids(), min_coverage=0.6)["a"]) == [2, 4]
    with pytest.raises(RegionError, match=r"sample 7: region 'b' covers no image cell.*min_coverage=1"):
        region_groups(
            {"b": (Box(left=2.5, top=0, right=4, bottom=2),)},
            ROLES,
            grids(),
            min_coverage=1,
            where="sample 7: ",
        )


def test_what_the_processor_crops_away():
    with pytest.raises(RegionError, match=r"'sign' covers no image cell: it lies in a part .* crops away"):
        region_groups({"sign": (Box(left=0, top=0, right=2, bottom=4),)}, ROLES, grids())


def test_regions_outside():
    with pytest.raises(RegionError, match=r"region 'sign', Box.*sticks out.*image 0 is 8×4"):
        region_groups({"sign": (Box(left=0, top=0, right=2, bottom=5),)}, ROLES, grids())
    with pytest.raises(RegionError, match=r"sample has 0 image\(s\)"):
        region_groups({"sign": (Box(left=0, top=0, right=2, bottom=4),)}, ("final",), [])
