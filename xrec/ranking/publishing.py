"""The gate between staged lists and the table that downstream systems read: all checks hold, or yesterday's lists stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Publish
from xrec.evaluation.metrics import VALUES
from xrec.evaluation.stability import judge_stability
from xrec.ranking.evidence import Evidence

NOT_COMPARED = "not asked: popularity serves, or the newest select fold has too few lists that hit to tell"
"""What the summary says where the model that serves cannot be compared with popularity."""


class GateError(ValueError):
    """Staged lists that must not be published; the message names each check that failed, what was found and expected."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the gate."""

    name: str
    """The setting below ``publish`` that asks for it."""
    said: str
    """What was found, and what was expected."""
    passed: bool


def check_staged(
    staged: DataFrame,
    published: DataFrame | None,
    users: DataFrame,
    quality: Evidence | None,
    publish: Publish,
    *,
    top_k: int,
) -> list[Check]:
    """Every check of a run date's staged lists.

    Parameters
    ----------
    staged, published
        Rows with ``user_idx``, ``item_id``, ``rank``: the lists to publish, and those published before (None: there are none).
    users
        One row a user (``user_idx``) who should have a list, with ``possible``: the items that it can have, at most ``top_k`` or
        more.
    quality
        The model that serves on the newest select fold, compared with popularity; None where it cannot be compared.
    """
    of_user = staged.groupBy(C.USER_IDX).agg(F.max(C.RANK).alias("length"))
    counts = users.join(of_user, C.USER_IDX, how="left").agg(
        F.count("*"), F.count("length"), F.count_if(F.col("length") >= F.least(C.POSSIBLE, F.lit(top_k)))
    )
    row = counts.first()
    assert row is not None
    num_users, num_lists, num_full = row
    checks = [
        _share(
            "min_user_share",
            num_lists,
            num_users,
            "users for whom there is something new have a list",
            publish.min_user_share,
        ),
        _share(
            "min_full_share",
            num_full,
            num_lists,
            f"lists are {top_k} long, or as long as they can be",
            publish.min_full_share,
        ),
    ]
    if published is not None:
        common = (
            judge_stability(staged, published, ks=[top_k]).agg(F.avg(F.get(VALUES, F.lit(0))), F.count("*")).first()
        )
        assert common is not None
        if common[1]:
            said = f"{common[0]:.1%} of a list stays, over {common[1]:,} users; expected at least {publish.min_overlap:.1%}"
            checks.append(Check(name="min_overlap", said=said, passed=common[0] >= publish.min_overlap))
    if quality is not None and publish.not_below_popularity:
        said = (
            f"NDCG of {quality.model} differs from popularity's by {quality.difference:+.4f} [{quality.adjusted_low:+.4f}, "
            f"{quality.adjusted_high:+.4f}] on the newest select fold; expected an interval that is not wholly below 0"
        )
        checks.append(Check(name="not_below_popularity", said=said, passed=quality.adjusted_high >= 0))
    return checks


def _share(name: str, part: int, whole: int, what: str, least: float) -> Check:
    said = f"{part:,} of {whole:,} {what}; expected at least {least:.1%}"
    return Check(name=name, said=said, passed=bool(whole) and part >= least * whole)


def require_all(checks: Sequence[Check], run_date: str) -> None:
    """Raise :class:`GateError` where a check failed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "; ".join(f"publish.{check.name}: found {check.said}" for check in failed)
        raise GateError(
            f"the lists of {run_date} are not published, and whoever reads recommendations still gets those from before: {lines}. "
            "The staged lists lie in staged_recommendations: look at them, then mend what made them, or change the setting, and "
            "run the stage publish again"
        )
