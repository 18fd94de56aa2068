"""Who is in which arm: a function of the user's key alone, so that any system can compute it, for users unseen before as well.

With u the first 13 hexadecimal digits of SHA-256("salt:experiment:user_id") in UTF-8, read as a number and divided by 16^13
(52 bits, exact in a double everywhere), the arm is the first one, in the order of ``experiment.arms``, with u below the sum of the
shares until and with it; the last one takes the rest. ``user_id`` is the key that the lists have.
"""

from __future__ import annotations

import hashlib
from itertools import accumulate

from pyspark.sql import Column
from pyspark.sql import functions as F

from xrec.config import Experiment

_DIGITS = 13
_RANGE = 16.0**_DIGITS


def arm_of(user_id: str, experiment: Experiment) -> str:
    """A user's arm, for systems without Spark: the reference of :func:`assigned_arm`.

    Examples
    --------
    >>> arm_of("4711", Experiment(name="spring", salt="s1", arms={"control": 0.5, "lists": 0.5}))
    'lists'
    """
    digest = hashlib.sha256(f"{experiment.salt}:{experiment.name}:{user_id}".encode()).hexdigest()
    place = int(digest[:_DIGITS], 16) / _RANGE
    ends = zip(experiment.arms, accumulate(experiment.arms.values()), strict=True)
    return next((arm for arm, end in ends if place < end), list(experiment.arms)[-1])


def assigned_arm(user_id: Column, experiment: Experiment) -> Column:
    """Users' keys to their arms, by Spark's own functions."""
    text = F.concat(F.lit(f"{experiment.salt}:{experiment.name}:"), user_id)
    digits = F.substring(F.sha2(text, 256), 1, _DIGITS)
    place = F.conv(digits, 16, 10).cast("bigint").cast("double") / F.lit(_RANGE)
    *others, last = zip(experiment.arms, accumulate(experiment.arms.values()), strict=True)
    arm = F.lit(last[0])
    for name, end in reversed(others):
        arm = F.when(place < F.lit(end), F.lit(name)).otherwise(arm)
    return F.when(user_id.isNotNull(), arm)
