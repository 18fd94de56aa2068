"""An experiment's results, as rows of ``experiment_results`` and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timezone
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Experiment, Settings
from xrec.experiments.effects import HIGHER, LOWER, MISMATCH, SRM_LEVEL, Sums, results_of
from xrec.experiments.exposures import read_exposures
from xrec.experiments.outcomes import (
    ALL,
    CONVERSION,
    IN_CATEGORY,
    METRICS,
    SPEND,
    USED,
    USES,
    WINDOW_OPEN,
    bought_events,
    judge_exposures,
    num_users_of,
    outcomes_of,
    segments_of,
    sums_of,
    users_of_experiment,
)
from xrec.storage.tables import Tables

_NUM_CATEGORIES = 5


class ExperimentError(ValueError):
    """An experiment that cannot be read; the message says what became of its exposures."""


def analyse(
    tables: Tables, events: DataFrame, settings: Settings, experiment: Experiment
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of ``experiment_results`` from the tables, and what became of the exposures, for the summary.

    No row while all windows are open. ``events`` are the indexed ones (:meth:`xrec.runs.stage.StageContext.indexed_events`).

    Raises
    ------
    ExperimentError
        No exposure of the experiment can be used.
    """
    newest = events.agg(F.max(C.EVENT_TS)).first()
    if newest is None or newest[0] is None:
        raise ExperimentError("table 'judged_events': found no event, expected the purchases that the exposures led to")
    judged = judge_exposures(read_exposures(tables, settings), experiment, newest[0].replace(tzinfo=timezone.utc))
    uses = {row[C.USE]: int(row["count"]) for row in judged.groupBy(C.USE).count().collect()}
    figures = {f"exposures_{use}": f"{uses[use]:,}" for use in USES if use in uses}
    if not uses.get(USED):
        if not uses.get(WINDOW_OPEN):
            raise ExperimentError(_nothing_used(uses, experiment))
        until = f"the log ends {newest[0]:%Y-%m-%d %H:%M}, within experiment.window_days ({experiment.window_days:g}) of all"
        return [], figures | {"results": f"none yet: {until}"}
    used = judged.where(F.col(C.USE) == USED)
    segments = None
    if tables.exists("user_attributes"):
        identities = tables.read("identities").drop(C.VERSIONS) if tables.exists("identities") else None
        segments = segments_of(tables.read("user_attributes").drop(C.VERSIONS), identities, settings)
    outcomes = outcomes_of(used, bought_events(events, settings.categories.counting_events), experiment)
    found = {
        (row[C.ARM], row[C.KIND], row[C.SLICE], row[C.METRIC]): row for row in sums_of(outcomes, segments).collect()
    }
    num_users = {
        (row[C.ARM], row[C.KIND], row[C.SLICE]): int(row[C.NUM_USERS])
        for row in num_users_of(users_of_experiment(used), segments).collect()
    }
    sums = {
        key: Sums(
            num_users=num_users[(key[0], ALL, ALL) if key[1] == IN_CATEGORY else key[:3]],
            num_active=row[C.NUM_ACTIVE],
            total=row["total"],
            squares=row["squares"],
        )
        for key, row in found.items()
    }
    # Without a price nothing is known of what was spent.
    metrics = [name for name in METRICS if name != SPEND or any(key[3] == SPEND for key in sums)]
    rows = results_of(
        sums, num_users, shares=experiment.arms, metrics=metrics, confidence=settings.evaluation.confidence
    )
    return [{C.EXPERIMENT: experiment.name} | row for row in rows], figures


def describe_results(rows: Sequence[Mapping[str, Any]], shares: Mapping[str, float]) -> dict[str, str]:
    """The arms, the sample-ratio test, each metric of each arm, and the categories that differ most, for the summary."""
    overall = [row for row in rows if row[C.KIND] == ALL]
    sizes = {row[C.ARM]: row[C.NUM_USERS] for row in overall}
    total = sum(sizes.values())
    figures = {
        f"arm {arm}": f"{sizes[arm]:,} users, {share * total:,.0f} expected of a share of {share:g}"
        for arm, share in shares.items()
    }
    p_value = overall[0][C.SRM_P_VALUE]
    is_valid = p_value >= SRM_LEVEL
    figures["sample ratio"] = f"as the shares say (p = {p_value:.3g})" if is_valid else _mismatch(p_value)
    for row in overall:
        figures[f"{row[C.METRIC]} {row[C.ARM]}"] = describe_arm(row)
    ranked = sorted(
        (row for row in rows if row[C.KIND] == IN_CATEGORY and row[C.METRIC] == CONVERSION and _sureness(row) > 0),
        key=lambda row: (row[C.VERDICT] not in {HIGHER, LOWER}, -_sureness(row), row[C.SLICE], row[C.ARM]),
    )
    for row in ranked[:_NUM_CATEGORIES]:
        figures[f"{row[C.METRIC]} {row[C.ARM]} in {row[C.SLICE]}"] = describe_arm(row)
    return figures


def describe_arm(row: Mapping[str, Any]) -> str:
    """A row of ``experiment_results`` as one line; where the experiment is not valid, without an effect."""
    if row[C.LOW] is None:
        return f"too few users ({row[C.NUM_USERS]:,})"
    text = f"{row[C.VALUE]:.4g} [{row[C.LOW]:.4g}, {row[C.HIGH]:.4g}] a user"
    if row[C.VERDICT] == MISMATCH:
        return f"{text}; {MISMATCH}"
    if row[C.DIFFERENCE] is None:
        return text
    base = row[C.VALUE] - row[C.DIFFERENCE]
    relative = f" ({row[C.DIFFERENCE] / base:+.1%})" if base else ""
    interval = f"[{row[C.DIFFERENCE_LOW]:+.4g}, {row[C.DIFFERENCE_HIGH]:+.4g}]"
    return f"{text}; to the control {row[C.DIFFERENCE]:+.4g} {interval}{relative}: {row[C.VERDICT]}"


def _sureness(row: Mapping[str, Any]) -> float:
    """How many half-widths of its interval a difference is from 0."""
    if row[C.DIFFERENCE] is None or row[C.DIFFERENCE_HIGH] == row[C.DIFFERENCE_LOW]:
        return 0.0
    difference, low, high = (float(row[name]) for name in (C.DIFFERENCE, C.DIFFERENCE_LOW, C.DIFFERENCE_HIGH))
    return 2 * abs(difference) / (high - low)


def _mismatch(p_value: float) -> str:
    return (
        f"SAMPLE-RATIO MISMATCH (p = {p_value:.1e}, below {SRM_LEVEL:g}): the arms are not what the shares make by chance, so no "
        "effect is called. Look for users who are lost or logged in one arm only, and for a salt, name, share or order of arms "
        "that differs from the system that assigns"
    )


def _nothing_used(uses: Mapping[str, int], experiment: Experiment) -> str:
    total = sum(uses.values())
    found = ", ".join(f"{count:,} {use}" for use, count in sorted(uses.items(), key=lambda item: -item[1]))
    return (
        f"experiment '{experiment.name}': found none of the {total:,} exposures to be used ({found or 'no row'}), expected some; "
        "wrong_arm: salt, name, arms or their order differ from the system that assigns; arm_unknown: name the arms in "
        "experiment.arms; other_experiment: set experiment.name"
    )
