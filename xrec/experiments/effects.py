"""Arms compared: sample-ratio mismatch, means a user, and differences to the control, from sums alone.

An arm's sums over its n users of a value x and of x^2 give the mean m and the variance s^2. The difference of two arms is judged by
Welch's t (1947): (m1 - m0) +- t(v) e with e^2 = s1^2 / n1 + s0^2 / n0 and
v = e^4 / ((s1^2 / n1)^2 / (n1 - 1) + (s0^2 / n0)^2 / (n0 - 1)) (Kohavi, Tang, Xu 2020, Trustworthy Online Controlled
Experiments, chapter 17). Users are independent because they, not their showings, were assigned. Sums need no bootstrap: of many
users a mean is normal, and where few users have a value above 0 nothing is called.

Sample-ratio mismatch is Pearson's chi-square test of the users of each arm against the shares; below 0.001 the experiment is
not to be trusted (Fabijan et al. 2019, Diagnosing sample ratio mismatch in online controlled experiments).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from xrec import columns as C
from xrec.experiments.outcomes import ALL, IN_CATEGORY

Floats = npt.NDArray[np.float64]

SRM_LEVEL = 0.001
"""Below this p-value the arms' sizes are not what the shares make by chance."""
MIN_EXPECTED = 10.0
"""Users with a value above 0 that each of two arms must expect, were they alike; below, the t interval is too short."""
HIGHER, LOWER, NOT_SURE, TOO_FEW, MISMATCH, CONTROL = (
    "higher",
    "lower",
    "no sure difference",
    "too few to tell",
    "not valid: sample-ratio mismatch",
    "control",
)
"""What may be said of an arm beside the control, by the adjusted interval."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """A value of an arm's users, summed."""

    num_users: int
    num_active: int = 0
    """Users whose value is above 0."""
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Mean a user; NaN of no user."""
        return self.total / self.num_users if self.num_users else float("nan")

    @property
    def variance(self) -> float:
        """Unbiased variance; NaN of fewer than two users."""
        if self.num_users < 2:
            return float("nan")
        return max(self.squares - self.total**2 / self.num_users, 0.0) / (self.num_users - 1)


def srm_p_value(num_users: Sequence[int], shares: Sequence[float]) -> float:
    """Probability of arms at least as far from their shares as these, were the assignment right; 1 without users.

    Examples
    --------
    >>> round(srm_p_value([821_588, 815_482], [0.5, 0.5]), 7)
    1.8e-06
    """
    total = sum(num_users)
    if total == 0:
        return 1.0
    expected = np.asarray(shares) / np.sum(shares) * total
    return float(stats.chisquare(num_users, expected).pvalue)


def mean_interval(mean: float, variance: float, num_users: int, confidence: float) -> tuple[float, float]:
    """Student's interval of a mean."""
    reach = stats.t.ppf((1 + confidence) / 2, max(num_users - 1, 1)) * np.sqrt(variance / max(num_users, 1))
    return mean - reach, mean + reach


def welch_interval(means: Floats, variances: Floats, nums: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Means, variances and numbers of users [2, ...], the control first, to the two ends of the difference's interval [...].

    Examples
    --------
    >>> low, high = welch_interval(np.array([2.0, 3.0]), np.array([1.0, 4.0]), np.array([50.0, 80.0]), 0.95)
    >>> round(float(low), 4), round(float(high), 4)
    (0.4757, 1.5243)
    """
    parts = variances / nums
    variance = parts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = variance**2 / (parts**2 / (nums - 1)).sum(axis=0)
    # Nobody differs: the interval is the point, whatever the quantile.
    freedom = np.where(variance > 0, freedom, 1.0)
    reach = stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance)
    difference = means[1] - means[0]
    return difference - reach, difference + reach


def compare(arm: Sums, control: Sums, confidence: float, *, num_compared: int) -> dict[str, float | str]:
    """An arm beside the control: ``difference`` with its intervals, and ``verdict``; of fewer than two users the verdict alone.

    The adjusted interval holds for all ``num_compared`` comparisons at once (Bonferroni), and by it the verdict is given.
    """
    if min(arm.num_users, control.num_users) < 2:
        return {C.VERDICT: TOO_FEW}
    means, variances = np.array([control.mean, arm.mean]), np.array([control.variance, arm.variance])
    nums = np.array([control.num_users, arm.num_users], dtype=float)
    low, high = welch_interval(means, variances, nums, confidence)
    wide_low, wide_high = welch_interval(means, variances, nums, 1 - (1 - confidence) / num_compared)
    if (arm.num_active + control.num_active) / nums.sum() * nums.min() < MIN_EXPECTED:
        verdict = TOO_FEW
    else:
        verdict = HIGHER if wide_low > 0 else LOWER if wide_high < 0 else NOT_SURE
    return {
        C.DIFFERENCE: arm.mean - control.mean,
        C.DIFFERENCE_LOW: float(low),
        C.DIFFERENCE_HIGH: float(high),
        C.ADJUSTED_LOW: float(wide_low),
        C.ADJUSTED_HIGH: float(wide_high),
        C.VERDICT: verdict,
    }


def results_of(
    sums: Mapping[tuple[str, str, str, str], Sums],
    num_users: Mapping[tuple[str, str, str], int],
    *,
    shares: Mapping[str, float],
    metrics: Sequence[str],
    confidence: float,
) -> list[dict[str, Any]]:
    """Sums by (arm, kind, slice, metric) and users by (arm, kind, slice) to ``experiment_results`` without ``experiment``.

    Where an arm has users and no sum, nobody in it has a value above 0. A category has all users. ``shares`` are the arms', the
    control first.
    """
    control, *others = shares
    p_value = srm_p_value([num_users.get((arm, ALL, ALL), 0) for arm in shares], list(shares.values()))
    slices = sorted({key[1:3] for key in (*num_users, *sums)})
    rows = []
    for kind, name in slices:
        num_compared = len(others) * len(metrics) * sum(other == kind for other, _ in slices)
        whole = (ALL, ALL) if kind == IN_CATEGORY else (kind, name)
        for metric in metrics:
            of_arm = {
                arm: sums.get((arm, kind, name, metric), Sums(num_users=num_users.get((arm, *whole), 0)))
                for arm in shares
            }
            for arm, found in of_arm.items():
                row = {C.ARM: arm, C.KIND: kind, C.SLICE: name, C.METRIC: metric, C.SRM_P_VALUE: p_value}
                row |= _figures(found, confidence)
                if arm != control:
                    row |= compare(found, of_arm[control], confidence, num_compared=num_compared)
                    row |= {C.VERDICT: MISMATCH} if p_value < SRM_LEVEL else {}
                rows.append(row)
    return rows


def _figures(arm: Sums, confidence: float) -> dict[str, Any]:
    """An arm by itself, as if it were the control."""
    row: dict[str, Any] = dict.fromkeys(_DIFFERENCES)
    row |= {C.NUM_USERS: arm.num_users, C.NUM_ACTIVE: arm.num_active, C.VERDICT: CONTROL}
    row |= {C.VALUE: arm.mean if arm.num_users else None, C.LOW: None, C.HIGH: None}
    if arm.num_users > 1:
        row[C.LOW], row[C.HIGH] = map(float, mean_interval(arm.mean, arm.variance, arm.num_users, confidence))
    return row


_DIFFERENCES = (C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH, C.ADJUSTED_LOW, C.ADJUSTED_HIGH)
