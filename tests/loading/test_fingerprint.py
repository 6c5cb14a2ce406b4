"""mmlens.loading.fingerprint: same weights same hash, other weights another."""

import torch

from mmlens.loading import fingerprint, named_tensors_of, open_checkpoint
from tests.loading.layouts import LAYOUTS, write_checkpoint
from tests.tiny import tiny_llava


def test_the_layout_does_not_matter_and_the_seed_does(tmp_path):
    model = tiny_llava(0)
    for layout in LAYOUTS:
        write_checkpoint(model, tmp_path / layout, layout, n_shards=2)
    prints = {fingerprint(open_checkpoint(tmp_path / layout).tensors) for layout in LAYOUTS}
    assert prints == {fingerprint(named_tensors_of(model))}
    assert fingerprint(named_tensors_of(tiny_llava(1))) not in prints
    assert all(len(value) == 32 for value in prints)


def test_dtype_shape_name_and_any_small_edit_matter():
    base = {"a": torch.arange(12.0).reshape(3, 4)}
    edited = base["a"].clone()
    edited[1, 2] += 1e-6
    others = [{"a": base["a"].bfloat16()}, {"a": base["a"].reshape(4, 3)}, {"b": base["a"]}, {"a": edited}]
    assert len({fingerprint(tensors) for tensors in [base, *others]}) == 5


def test_large_tensors_are_sampled_at_both_ends_whatever_their_strides():
    large = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    assert fingerprint({"a": large}) == fingerprint({"a": large.t().contiguous().t()})
    for position in ((0, 0), (-1, -1)):
        edited = large.clone()
        edited[position] += 1
        assert fingerprint({"a": edited}) != fingerprint({"a": large})
