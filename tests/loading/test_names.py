"""mmlens.loading.names: every layout maps to one set of names."""

import pytest

from mmlens.errors import CheckpointError
from mmlens.loading.names import canonical_name, is_unused, stored_names
from tests.loading.layouts import LAYOUTS, live_tensors
from tests.tiny import tiny_llava


@pytest.fixture(scope="module")
def names():
    return list(live_tensors(tiny_llava(0, bias=True)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_maps_to_the_live_names(names, layout):
    stored = [LAYOUTS[layout](name) for name in names]
    assert [canonical_name(name) for name in stored] == names


def test_layouts_differ_so_that_the_rules_are_needed(names):
    written = {tuple(rename(name) for name in names) for rename in LAYOUTS.values()}
    assert len(written) == len(LAYOUTS)


def test_canonical_names_are_fixed_points(names):
    assert [canonical_name(name) for name in names] == names


def test_a_bare_clip_folder_is_a_tower():
    assert canonical_name("vision_model.pre_layrnorm.bias") == "model.vision_tower.pre_layrnorm.bias"


@pytest.mark.parametrize(
    "name", ["model.image_newline", "text_model.final_layer_norm.bias", "model.layersnorm.weight"]
)
def test_unknown_names_stay(name):
    assert canonical_name(name) == name


def test_two_names_for_one_tensor_are_refused():
    with pytest.raises(
        CheckpointError, match=r"'lm_head.weight' and 'language_model.lm_head.weight'.*mixes two layouts"
    ):
        stored_names(["lm_head.weight", "language_model.lm_head.weight"])


def test_unused_tensors_are_exactly_the_known_ones(names):
    unused = [name for name in names if is_unused(name)]
    assert unused == ["model.vision_tower.post_layernorm.weight", "model.vision_tower.post_layernorm.bias"]
    assert is_unused(canonical_name("language_model.model.layers.0.self_attn.rotary_emb.inv_freq"))
    assert is_unused(canonical_name("vision_tower.vision_model.embeddings.position_ids"))
    assert not is_unused("model.language_model.layers.0.post_attention_layernorm.weight")
