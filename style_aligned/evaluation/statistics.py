"""How sure an average over sets is: bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes:
        value: The estimate.
        low: The lower end of the interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Estimate a mean over sets, with a percentile bootstrap interval: sets are drawn anew, with replacement.

    Args:
        values: A number for each set.
        confidence: How often the interval is to hold the truth.
        resamples: How many times to draw anew.
        seed: The seed of the draws.

    Raises:
        ValueError: If there are no values, one is not finite, or the confidence is not between 0 and 1.
    """
    array = _check_values(values)
    means = array[_draw(len(array), resamples, seed)].mean(axis=-1)
    return _interval(float(array.mean()), means, confidence)


def bootstrap_ratio(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Estimate the ratio of two means over the same sets: both are drawn anew together, as they belong together.

    Args:
        values: A number for each set.
        baseline: What to compare with, for the same sets in the same order.
        confidence: How often the interval is to hold the truth.
        resamples: How many times to draw anew.
        seed: The seed of the draws.

    Raises:
        ValueError: As for `bootstrap_mean`, if the numbers of values differ, or if the baseline is not positive.
    """
    array, base = _check_values(values), _check_values(baseline)
    if len(array) != len(base):
        raise ValueError(f"expected as many values as in the baseline, got {len(array)} and {len(base)}")
    if not (base > 0).all():
        raise ValueError(f"expected a positive baseline, got {base.min():g}")
    draws = _draw(len(array), resamples, seed)
    ratios = array[draws].mean(axis=-1) / base[draws].mean(axis=-1)
    return _interval(float(array.mean() / base.mean()), ratios, confidence)


def bootstrap_pairs(
    values: Float[NDArray[Any], "images images"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Estimate the mean over all pairs of images of a set, with a percentile bootstrap interval: images are drawn anew.

    An image that is drawn twice makes no pair with itself, which would say nothing of the set.

    Args:
        values: The value of each pair, in a symmetric matrix. What is on its diagonal does not matter.
        confidence: How often the interval is to hold the truth.
        resamples: How many times to draw anew.
        seed: The seed of the draws.

    Raises:
        ValueError: If there are fewer than two images, a value is not finite, or the confidence is not between 0 and 1.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"expected pairs of at least two images, got {count}")
    matrix = np.where(np.eye(count, dtype=bool), 0, np.asarray(values, dtype=np.float64))
    if not np.isfinite(matrix).all():
        raise ValueError("expected finite values, got others among them")
    if resamples < 1:
        raise ValueError(f"expected resamples to be at least 1, got {resamples}")
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    pairs = count**2 - (draws**2).sum(axis=-1)
    sums = ((draws @ matrix) * draws).sum(axis=-1)
    value = float(matrix.sum() / (count * (count - 1)))
    return _interval(value, sums[pairs > 0] / pairs[pairs > 0], confidence)


def _check_values(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"expected one value for each set, got values of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("expected finite values, got others among them")
    return array


def _draw(count: int, resamples: int, seed: int) -> NDArray[np.int64]:
    if resamples < 1:
        raise ValueError(f"expected resamples to be at least 1, got {resamples}")
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def _interval(value: float, estimates: NDArray[np.float64], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    low, high = np.quantile(estimates, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(value=value, low=float(low), high=float(high))
