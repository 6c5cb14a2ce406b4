"""What a fit is refused for, and R2 by hand."""

import numpy as np
import pytest
import torch

from mmlens.analyses.design import draw_design
from mmlens.analyses.fit_checks import check_varied, determination, finite_and_varying
from mmlens.errors import DesignError, NonFiniteError


def test_a_head_that_never_changes_is_named() -> None:
    design = draw_design(8, 2, 3, kind="iid", generator=torch.Generator().manual_seed(0))
    design.masks[:] = torch.arange(8)[:, None, None] % 2 == 0
    check_varied(design)
    design.masks[:, 1, 2] = True
    with pytest.raises(DesignError, match=r"1 heads are always kept .* layer 1, head 2"):
        check_varied(design)


def test_values_must_be_finite_and_vary() -> None:
    np.testing.assert_array_equal(finite_and_varying(torch.tensor([1.0, 2.0])), [1.0, 2.0])
    with pytest.raises(NonFiniteError, match=r"1 of 2 masks .* mask 1"):
        finite_and_varying(torch.tensor([1.0, torch.nan]))
    with pytest.raises(DesignError, match="does not move it"):
        finite_and_varying(torch.tensor([3.0, 3.0]))


def test_determination_by_hand() -> None:
    y = np.array([0.0, 2.0, 4.0])
    assert determination(y, np.array([0.0, 2.0, 2.0])) == pytest.approx(0.5)
    assert determination(y, y) == 1.0 and determination(y, np.full(3, 2.0)) == 0.0
