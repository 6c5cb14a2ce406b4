"""LLaVA-1.5's packing rule, and the seam for other families."""

from dataclasses import replace

import numpy as np
import pytest

from mmlens.errors import ConfigError, MissingPixels, ShapeError, UnexpectedPixels, UnsupportedArchitecture
from mmlens.inputs.families import family_of
from mmlens.inputs.families.llava import CHAT_TEMPLATE, pack
from mmlens.inputs.geometry import unprocessed

SQUARE = unprocessed((28, 28))


def test_cells_run_row_by_row(word):
    first, second = pack(np.arange(3, 35), [SQUARE, SQUARE], word.cfg)
    np.testing.assert_array_equal(first.positions, np.arange(3, 19).reshape(4, 4))
    np.testing.assert_array_equal(second.positions, np.arange(19, 35).reshape(4, 4))
    assert (first.image_index, second.image_index) == (0, 1)
    assert first.boxes[1, 2].tolist() == [14, 7, 21, 14]


def test_runs_with_gaps(word):
    positions = np.concatenate([np.arange(2, 18), np.arange(19, 35)])
    first, second = pack(positions, [SQUARE, SQUARE], word.cfg)
    assert first.positions[3, 3] == 17 and second.positions[0, 0] == 19


def test_a_class_token_is_no_cell(make_cfg):
    (grid,) = pack(np.arange(17), [SQUARE], make_cfg(vision_feature_select_strategy="full"))
    np.testing.assert_array_equal(grid.positions, np.arange(1, 17).reshape(4, 4))


def test_no_image_no_grid(word):
    assert pack(np.arange(0), [], word.cfg) == ()


@pytest.mark.parametrize(
    ("n_tokens", "n_images", "error", "words"),
    [
        (16, 0, MissingPixels, r"16 image tokens, but 0 image\(s\)"),
        (5, 0, MissingPixels, "5 image tokens"),
        (32, 1, MissingPixels, "one image for each placeholder"),
        (0, 1, UnexpectedPixels, r"1 image\(s\), but image tokens for 0"),
        (16, 2, UnexpectedPixels, r"2 image\(s\), but image tokens for 1"),
        (
            17,
            1,
            ConfigError,
            r"makes 16 features of each \(28 px in cells of 7 px\).*num_additional_image_tokens=1",
        ),
    ],
)
def test_counts_that_do_not_fit(word, n_tokens, n_images, error, words):
    with pytest.raises(error, match=words):
        pack(np.arange(n_tokens), [SQUARE] * n_images, word.cfg)


def test_pixels_of_another_size(word):
    with pytest.raises(ShapeError, match="reaches the tower as 14×28 pixels, but it takes 28×28"):
        pack(np.arange(16), [unprocessed((28, 14))], word.cfg)


def test_registry(word):
    assert family_of(word.cfg).pack is pack and family_of(word.cfg).chat_template == CHAT_TEMPLATE
    with pytest.raises(UnsupportedArchitecture, match=r"'OtherModel'; known: LlavaForConditionalGeneration"):
        family_of(replace(word.cfg, architecture="OtherModel"))
