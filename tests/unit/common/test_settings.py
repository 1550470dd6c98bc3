"""Checks of parameters: what passes, and the sentence for what does not."""

import pytest

from free2ds_common.errors import StageError
from free2ds_common.settings import require_at_least, require_choice, require_fraction

NAN = float("nan")


def test_choice():
    require_choice("sampler", "top", {"top", "gumbel"})
    with pytest.raises(StageError) as caught:
        require_choice("sampler", "best", {"top", "gumbel"})
    assert str(caught.value) == "sampler: got 'best', wanted one of gumbel, top."


def test_at_least():
    require_at_least("num_samples", 0, 0)
    require_at_least("num_samples", float("inf"), 0)
    for value, shown in [(-1, "-1"), (-0.5, "-0.5"), (NAN, "nan")]:
        with pytest.raises(StageError) as caught:
            require_at_least("num_samples", value, 0)
        assert str(caught.value) == f"num_samples: got {shown}, wanted a number of at least 0."


def test_fraction():
    for value in (0, 0.5, 1):
        require_fraction("alpha", value)
    for value in (-0.01, 1.01, NAN, float("inf")):
        with pytest.raises(StageError, match=r"alpha: got .*, wanted a number in \[0, 1\]"):
            require_fraction("alpha", value)
    require_fraction("ratio", 1, zero_allowed=False)
    with pytest.raises(StageError) as caught:
        require_fraction("ratio", 0, zero_allowed=False)
    assert str(caught.value) == "ratio: got 0, wanted a number in (0, 1]."
