import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.compare.lineage import LEAST_VALUES, Likeness, likeness, lineage_score

numbers = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])
pairs_of_values = st.lists(st.tuples(numbers, numbers), max_size=40)


@given(pairs_of_values)
def test_likeness_is_what_plain_python_says(pairs):
    base, tuned = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    kept = [(b, t) for b, t in pairs if math.isfinite(b) and math.isfinite(t)]
    length = [math.sqrt(math.fsum(pair[side] ** 2 for pair in kept)) for side in (0, 1)]
    moved = math.sqrt(math.fsum((t - b) ** 2 for b, t in kept))
    product = math.fsum(b * t for b, t in kept)
    expected = (
        moved / length[0] if length[0] else math.nan,
        product / (length[0] * length[1]) if length[0] * length[1] else math.nan,
    )
    found = likeness(base, tuned)
    assert (found.numel, found.equal) == (len(kept), sum(b == t for b, t in kept))
    assert (found.relative_distance, found.cosine) == pytest.approx(expected, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sums_are_not_taken_in_the_narrow_dtype(dtype):
    """60,000 values of 1 would end at 2,048 in float16."""
    ones = np.ones(60_000, dtype)
    found = likeness(ones, ones + 1)
    assert (found.numel, found.equal) == (60_000, 0)
    assert (found.relative_distance, found.cosine) == pytest.approx((1, 1), rel=1e-12)


def test_unrelated_values_are_at_right_angles_and_updates_are_not():
    rng = np.random.default_rng(0)
    base, other, step = rng.normal(0, 1, (3, 10_000))
    assert abs(likeness(base, other).cosine) < 4 / math.sqrt(10_000)
    near = likeness(base, base + 0.1 * step)
    assert near.cosine == pytest.approx(1 / math.sqrt(1.01), abs=2e-3)
    assert near.relative_distance == pytest.approx(0.1, rel=0.05)


def sample(cosine, numel=LEAST_VALUES):
    return Likeness(numel, 0, 1.0, cosine)


@pytest.mark.parametrize(
    ("cosines", "score"),
    [
        ([1.0], 1.0),
        ([1.0 + 1e-15], 1.0),
        ([0.9, 0.5], 0.7),
        ([-0.8], 0.0),
        ([1.0, -1.0], 0.5),
        ([math.nan, 0.6], 0.6),
        ([math.nan], None),
        ([], None),
    ],
)
def test_score(cosines, score):
    assert lineage_score([sample(cosine) for cosine in cosines]) == score


def test_too_few_values_have_no_score():
    few = LEAST_VALUES - 1
    assert lineage_score([sample(1.0, few)]) is None
    assert lineage_score([sample(1.0, few), sample(1.0, 1)]) == 1.0
    assert lineage_score([sample(1.0, few), sample(math.nan, 100)]) is None
