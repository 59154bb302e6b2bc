from itertools import combinations, product

import numpy as np
import pytest

from style_aligned.evaluation.statistics import Interval, bootstrap_mean, bootstrap_pairs, bootstrap_ratio


def test_bootstrap_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials = 400
    held = 0
    for _ in range(trials):
        interval = bootstrap_mean(rng.exponential(size=60).tolist(), resamples=400)
        held += interval.low <= 1 <= interval.high
    assert 0.89 < held / trials < 0.98  # a little below 95% is known of percentile intervals on few skewed values


def test_bootstrap_interval_is_as_wide_as_the_central_limit_theorem_says() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    interval = bootstrap_mean(values.tolist(), resamples=2000)
    error = values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(
        [interval.low, interval.high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=5e-3
    )


def test_bootstrap_of_a_constant_has_no_width() -> None:
    assert bootstrap_mean([0.5] * 10) == Interval(0.5, 0.5, 0.5)


def test_bootstrap_is_reproducible() -> None:
    values = np.random.default_rng(0).normal(size=20).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_ratio_draws_pairs() -> None:
    baseline = np.random.default_rng(0).uniform(1, 9, size=30)
    paired = bootstrap_ratio((baseline / 2).tolist(), baseline.tolist())
    assert (paired.value, paired.low, paired.high) == pytest.approx((0.5, 0.5, 0.5))
    other = np.random.default_rng(1).permutation(baseline / 2)
    unpaired = bootstrap_ratio(other.tolist(), baseline.tolist())
    assert unpaired.low < 0.45 < 0.55 < unpaired.high


def test_mean_over_pairs_and_its_interval_by_hand() -> None:
    """Of three images, all 27 ways to draw three anew, without the three that draw one image alone."""
    values = np.array([[9.0, 0.1, 0.4], [0.1, 9.0, 0.7], [0.4, 0.7, 9.0]])
    interval = bootstrap_pairs(values, resamples=200_000)
    assert interval.value == pytest.approx((0.1 + 0.4 + 0.7) / 3)
    means: list[float] = []
    for draw in product(range(3), repeat=3):
        pairs = [values[a, b] for a, b in combinations(draw, 2) if a != b]
        means += [float(np.mean(pairs))] if pairs else []
    assert len(means) == 24
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(means, [0.025, 0.975]), atol=1e-9)


def test_interval_over_pairs_holds_the_truth() -> None:
    """Images are numbers, and a pair's value their product: its mean over all images is the square of theirs."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        images = rng.normal(1, 1, size=30)
        interval = bootstrap_pairs(np.outer(images, images), resamples=400)
        held += interval.low <= 1 <= interval.high
    assert 0.87 < held / 300 < 0.98


@pytest.mark.parametrize(
    ("values", "message"),
    [([[1.0]], "expected pairs of at least two images, got 1"), ([[1, np.nan], [np.nan, 1]], "expected finite values")],
)
def test_bad_pairs_are_refused(values: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_pairs(np.array(values))


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [
        ([], [], "expected one value for each set"),
        ([1.0, float("nan")], [1.0, 1.0], "expected finite values"),
        ([1.0, 2.0], [1.0], "expected as many values as in the baseline, got 2 and 1"),
        ([1.0, 2.0], [1.0, 0.0], "expected a positive baseline, got 0"),
    ],
)
def test_bad_values_are_refused(values: list[float], baseline: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio(values, baseline)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_bad_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="expected a confidence between 0 and 1"):
        bootstrap_mean([1.0, 2.0], confidence=confidence)
