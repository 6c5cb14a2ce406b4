"""TokenMap: partition, bijections, padding, growth and display."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlens.errors import EmptyGroup, RegionError, SelectorError, ShapeError, UnknownGroup
from mmlens.inputs.grid import ImageGrid
from mmlens.inputs.prepare import prepare
from mmlens.inputs.prompt import ROLES, Prompt
from mmlens.inputs.regions import Box
from mmlens.inputs.token_map import TokenMap
from tests.inputs.kits import GRID, picture, unchecked

SIZES = st.tuples(st.integers(5, 90), st.integers(5, 90))
QUESTIONS = st.sampled_from(
    ["Is there a red triangle?", "What?", "How many circles are there in the picture?"]
)


def specs(fewest=0):
    return st.tuples(QUESTIONS, st.lists(SIZES, min_size=fewest, max_size=2))


def prompt_of(spec):
    """A prompt with an object in the middle of its first image."""
    question, sizes = spec
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    regions = {}
    if images:
        x, y = sizes[0][0] / 2, sizes[0][1] / 2
        regions["object"] = Box(left=x - 1, top=y - 1, right=x + 1, bottom=y + 1)
    return Prompt(question=question, image=images or None, regions=regions)


def one_map(kit, **fields):
    return prepare(
        Prompt(**{"question": "What is it?", **fields}), processor=kit.processor, cfg=kit.cfg
    ).token_maps[0]


# ---- properties over random prompts --------------------------------------------------------------------


@settings(max_examples=25)
@given(specs())
def test_roles_partition_and_cells_are_bijective(kit, spec):
    token_map = prepare(prompt_of(spec), processor=kit.processor, cfg=kit.cfg).token_maps[0]
    assert set(token_map.roles) <= set(ROLES) and len(token_map.roles) == token_map.n_pos
    at = [int(p) for grid in token_map.images for p in grid.positions.ravel()]
    assert len(set(at)) == len(at)
    assert sorted(at) == [i for i, role in enumerate(token_map.roles) if role == "image"]
    for index, grid in enumerate(token_map.images):
        for (row, col), position in np.ndenumerate(grid.positions):
            assert token_map.position(row, col, index) == position
            box = token_map.box(int(position))
            centre = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
            assert token_map.cell_at(centre, index) == (row, col)
            assert box.image == grid.image_index == index


@settings(max_examples=25)
@given(specs(fewest=1), specs())
def test_the_same_sample_alone_and_padded_in_a_batch(kit, first, second):
    first, second = prompt_of(first), prompt_of(second)
    alone = [prepare(p, processor=kit.processor, cfg=kit.cfg) for p in (first, second)]
    batch = prepare([first, second], processor=kit.processor, cfg=kit.cfg)
    for index, single in enumerate(alone):
        one, many = single.token_maps[0], batch.token_maps[index]
        n = many.n_pad
        assert n == batch.n_pos - single.n_pos
        assert many.tokens[n:] == one.tokens and many.roles[n:] == one.roles
        assert batch.input_ids[index, n:].tolist() == single.input_ids[0].tolist()
        assert set(many.groups) == set(one.groups)
        for name, mask in one.groups.items():
            np.testing.assert_array_equal(many.groups[name][n:], mask)
            assert not many.groups[name][:n].any()
        for before, after in zip(one.images, many.images, strict=True):
            np.testing.assert_array_equal(after.positions, before.positions + n)
            np.testing.assert_array_equal(after.boxes, before.boxes)


@settings(max_examples=40)
@given(SIZES, st.data())
def test_regions_select_exactly_the_cells_they_overlap(word, size, data):
    width, height = size
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    box = Box(left=left, top=top, right=right, bottom=bottom)
    image = picture(width, height)
    try:
        token_map = one_map(word, image=image, regions={"object": box})
    except RegionError as error:
        assert "crops away" in str(error)
        grid = one_map(word, image=image).images[0]
        seen = [
            grid.boxes[..., 0].min(),
            grid.boxes[..., 1].min(),
            grid.boxes[..., 2].max(),
            grid.boxes[..., 3].max(),
        ]
        assert (
            right <= seen[0] + 1e-4
            or left >= seen[2] - 1e-4
            or bottom <= seen[1] + 1e-4
            or top >= seen[3] - 1e-4
        )
        return
    (cells,) = token_map.cells("object")
    for (row, col), selected in np.ndenumerate(cells):
        cell = token_map.box(token_map.position(row, col))
        across = min(cell.right, right) - max(cell.left, left)
        down = min(cell.bottom, bottom) - max(cell.top, top)
        assert selected == (across > 1e-9 and down > 1e-9)
    np.testing.assert_array_equal(
        token_map.groups["object"] ^ token_map.groups["background"], token_map.mask("image")
    )


# ---- by hand -------------------------------------------------------------------------------------------


def test_groups_and_cells(word):
    token_map = one_map(
        word, image=picture(28, 28), regions={"object": Box(left=0, top=7, right=14, bottom=14)}
    )
    (cells,) = token_map.cells("object")
    assert np.argwhere(cells).tolist() == [[1, 0], [1, 1]]
    assert token_map.mask("object").sum() == 2 and token_map.mask("background").sum() == GRID**2 - 2
    assert not token_map.cells("question")[0].any()


def test_two_images_have_their_own_groups(word):
    token_map = one_map(
        word,
        image=[picture(), picture(20, 60)],
        regions={"sign": Box(left=0, top=20, right=9, bottom=40, image=1)},
    )
    assert token_map.n_images == 2 and "background" not in token_map.groups
    first, second = token_map.cells("sign")
    assert not first.any() and second.any()
    np.testing.assert_array_equal(
        token_map.mask("image_0") | token_map.mask("image_1"), token_map.mask("image")
    )
    np.testing.assert_array_equal(token_map.cells("image_1")[1], np.ones((GRID, GRID), bool))
    assert not token_map.cells("image_1")[0].any()


def test_own_groups(word):
    token_map = one_map(word, image=picture()).with_group("ends", [0, -1])
    assert np.flatnonzero(token_map.mask("ends")).tolist() == [0, token_map.n_pos - 1]
    assert "ends" in token_map.names
    with pytest.raises(SelectorError, match="belongs to a role"):
        token_map.with_group("image", [0])
    with pytest.raises(ValueError, match="read-only"):
        token_map.groups["ends"][0] = False


def test_extended(word):
    token_map = one_map(word, image=picture(), regions={"object": Box(left=10, top=10, right=20, bottom=20)})
    longer = token_map.extended(["a", "cat"])
    assert longer.n_pos == token_map.n_pos + 2 and longer.tokens[-2:] == ("a", "cat")
    assert longer.roles[-3:] == ("final", "answer", "answer")
    for name in ("text", "all", "generated", "answer"):
        assert longer.mask(name)[-2:].all()
    for name in ("object", "background", "image", "prompt", "question", "final"):
        assert not longer.mask(name)[-2:].any()
        np.testing.assert_array_equal(longer.mask(name)[:-2], token_map.mask(name))
    np.testing.assert_array_equal(longer.images[0].positions, token_map.images[0].positions)
    with pytest.raises(EmptyGroup):
        token_map.mask("generated")


def test_padded_and_back(word):
    token_map = one_map(word, image=picture(), regions={"object": Box(left=10, top=10, right=20, bottom=20)})
    there = token_map.padded(3)
    assert there.n_pad == 3 and there.mask("all").sum() == token_map.n_pos
    back = there.padded(-3)
    assert back.tokens == token_map.tokens and back.roles == token_map.roles
    np.testing.assert_array_equal(back.groups["object"], token_map.groups["object"])
    with pytest.raises(ShapeError, match="only 3 are padding"):
        there.padded(-4)


def test_lookups_that_fail(word):
    token_map = one_map(word, image=picture(60, 30))
    with pytest.raises(RegionError, match="no cell shows pixel"):
        token_map.cell_at((2, 2))
    with pytest.raises(SelectorError, match="no image 1: this sample has 1"):
        token_map.cell_at((30, 15), image=1)
    with pytest.raises(SelectorError, match="no image -1"):
        token_map.position(0, 0, image=-1)
    with pytest.raises(SelectorError, match=r"position 0 is no image cell \(it is system\)"):
        token_map.box(0)
    with pytest.raises(SelectorError, match="outside the sequence"):
        token_map.box(999)
    with pytest.raises(UnknownGroup, match="'dog'; known here"):
        token_map.mask("dog")


# ---- grids of other families ---------------------------------------------------------------------------


def test_several_grids_and_separators_per_image():
    """An overview and a row of tiles with a newline token, as other families write them."""
    boxes = np.zeros((1, 2, 4))
    boxes[0, :, 0], boxes[0, :, 2], boxes[0, :, 3] = (0, 5), (5, 10), 8
    base = ImageGrid(positions=np.array([[1, 2]]), boxes=boxes, size=(8, 10))
    tiles = ImageGrid(positions=np.array([[3, 5]]), boxes=boxes, size=(8, 10), kind="tiles")
    token_map = TokenMap(
        tokens=tuple("s12345:"),
        roles=("system", *("image",) * 5, "final"),
        images=(base, tiles),
    )
    assert token_map.n_images == 1 and token_map.mask("image").sum() == 5
    assert token_map.box(5) == token_map.box(2) and token_map.cell_at((7, 2), image=1) == (0, 1)
    with pytest.raises(SelectorError, match=r"position 4 is no image cell \(it is image\)"):
        token_map.box(4)
    assert token_map.table().loc[5, "kind"] == "tiles"


# ---- display -------------------------------------------------------------------------------------------


def test_table(word):
    token_map = one_map(
        word, image=picture(28, 28), regions={"object": Box(left=0, top=0, right=7, bottom=7)}
    )
    table = token_map.table()
    assert table.index.name == "position" and len(table) == token_map.n_pos
    assert table.role.tolist() == list(token_map.roles) and table.token.tolist() == list(token_map.tokens)
    cell = table.loc[token_map.position(1, 2)]
    assert (cell.row, cell.col, cell.left, cell.top, cell.right, cell.bottom) == (1, 2, 14, 7, 21, 14)
    assert table.groups.value_counts()["object"] == 1
    assert table.row.notna().sum() == GRID**2


def test_printed_form_draws_image_tokens_together(word):
    regions = {"object": Box(left=0, top=0, right=7, bottom=7)}
    short = Prompt(question="What is it?", image=picture(28, 28), regions=regions)
    long = Prompt(question="How many circles are there?", image=picture())
    lines = str(prepare([short, long], processor=word.processor, cfg=word.cfg).token_maps[0]).splitlines()
    assert len(lines) == 12 and "4×4 cells of 28×28 px" in lines[-1]
    assert any("× 16" in line and "object (1), background (15)" in line for line in lines)
    assert any("'ASSISTANT'" in line and "role" in line for line in lines)
    assert lines[1].split()[-1] == "pad"
    assert "\n" not in repr(one_map(word, image=picture()))


def test_html_is_escaped():
    hostile = "<script>alert(1)</script>"
    token_map = TokenMap(
        tokens=(hostile, "x"), roles=("question", "final"), groups={hostile: np.array([True, False])}
    )
    markup = token_map._repr_html_()
    assert "<script>" not in markup and markup.count("&lt;script&gt;") == 2
    assert markup.startswith("<table>") and markup.count("<tr>") == 3


# ---- construction --------------------------------------------------------------------------------------


def far_cell(position):
    return (ImageGrid(positions=np.array([[position]]), boxes=np.zeros((1, 1, 4)), size=(1, 1)),)


ONE = {"tokens": ("a",), "roles": ("final",)}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"tokens": ("a",), "roles": ("final", "pad")}, ShapeError, "1 tokens need 1 roles"),
        ({"tokens": ("a",), "roles": ("user",)}, ShapeError, "user"),
        ({**ONE, "groups": {"x": np.ones(2, bool)}}, ShapeError, r"bool array \[1\]"),
        ({**ONE, "groups": {"x": np.ones(1)}}, ShapeError, r"bool array \[1\]"),
        ({**ONE, "groups": {"text": np.ones(1, bool)}}, SelectorError, "belongs to a role"),
        ({**ONE, "images": far_cell(0)}, ShapeError, "role is not image"),
        ({"tokens": ("a",), "roles": ("image",), "images": far_cell(4)}, ShapeError, "role is not image"),
        (
            {"tokens": ("", "a"), "roles": ("pad", "final"), "groups": {"x": np.ones(2, bool)}},
            SelectorError,
            "contains padding",
        ),
    ],
)
def test_labels_that_do_not_fit(fields, error, words):
    with pytest.raises(error, match=words):
        unchecked(TokenMap, **fields)
