"""Figures in words. A difference is called one only where its interval, adjusted for all models compared, leaves out zero."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Row

from xrec import columns as C
from xrec.evaluation.report import HEADLINE, POOLED, is_significant
from xrec.evaluation.slices import COLD_USERS, SCOPES
from xrec.reporting.facts import Facts

BASELINE = C.POPULARITY
UNSURE = "no sure difference"
_SCOPES = {
    "touched": "outside the categories that the customer ever bought",
    "home": "outside the customer's main (home) categories",
    "new": "all items that the customer never had",
    "all": "all items",
}
_PARTS = {"cold_items": "items that nobody had before", "lapsed": "categories not bought for long"}


def name_slice(name: str) -> str:
    """A slice in words."""
    if name == COLD_USERS:
        return "customers without history"
    scope, _, part = name.partition("_")
    text = _SCOPES.get(scope, name)
    return f"{text}: {_PARTS[part]}" if part in _PARTS else text


def slices_in(rows: Sequence[Row], scope: str) -> list[str]:
    """The slices of rows of ``metrics``: that of the lists that go out first, then other scopes, then parts."""
    found = {row[C.SLICE] for row in rows}
    order = [scope, *SCOPES]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def models_in(rows: Sequence[Row]) -> list[str]:
    """The models of rows of ``metrics``: popularity first, what serves last."""
    return sorted({row[C.MODEL] for row in rows}, key=lambda name: (name != BASELINE, name == C.SERVED, name))


def verdict(row: Row) -> str:
    """What a row of ``metrics`` says beside popularity: above, below, or no sure difference; empty where nothing is compared."""
    if row[C.MODEL] == BASELINE or row[C.DIFFERENCE] is None or row[C.ADJUSTED_LOW] is None:
        return ""
    if not is_significant(row):
        return UNSURE
    return "higher" if row[C.DIFFERENCE] > 0 else "lower"


def difference(row: Row) -> str:
    """The difference to popularity with its adjusted interval, in per cent where popularity is not 0, and the verdict."""
    said = verdict(row)
    if not said:
        return "-"
    values = [row[name] for name in (C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH)]
    base = row[C.VALUE] - row[C.DIFFERENCE]
    if base > 0:
        mid, low, high = (f"{100 * value / base:+.1f}" for value in values)
        return f"{mid} % [{low}, {high}]: {said}"
    mid, low, high = (f"{value:+.4f}" for value in values)
    return f"{mid} [{low}, {high}]: {said}"


def value_of(row: Row) -> str:
    """A row of ``metrics`` as value and interval."""
    if row[C.LOW] is None:
        return f"{row[C.VALUE]:.4f}"
    return f"{row[C.VALUE]:.4f} [{row[C.LOW]:.4f}, {row[C.HIGH]:.4f}]"


def find(rows: Sequence[Row], metric: str, slice_name: str) -> list[Row]:
    """The rows of a metric and a slice, a model each, in the order of :func:`models_in`."""
    found = [row for row in rows if row[C.METRIC] == metric and row[C.SLICE] == slice_name]
    order = models_in(found)
    return sorted(found, key=lambda row: order.index(row[C.MODEL]))


def headline(facts: Facts) -> list[str]:
    """What the page says first: what serves, how good it is, and whether it is better than popularity."""
    where = name_slice(facts.scope)
    rows = find(facts.metrics, HEADLINE, facts.scope)
    row = next((row for row in rows if row[C.MODEL] == facts.served), None)
    chosen = next((one for one in facts.serving if one[C.CHOSEN]), None)
    lines = [
        f"{_serves(chosen)}, {where}. {_why(chosen, facts)}"
        if chosen is not None
        else f"Nothing serves from these folds; lists are judged {where}."
    ]
    if not rows:
        why = facts.missing.get("accuracy") or facts.missing.get("metrics") or "nobody has a target there."
        return [*lines, f"Its accuracy is not known: {why}"]
    if row is not None:
        lines.append(f"{_judged(row, facts.k)} {_compared(row)}")
    else:
        lines += [f"{one[C.MODEL]}: {_judged(one, facts.k)} {_compared(one)}".rstrip() for one in rows]
    if any(row[C.FOLD] == POOLED for row in rows):
        lines.append("Accuracy is of several folds together, in which a customer counts once a fold.")
    if facts.is_select:
        lines.append("These folds choose settings: none of the figures is one to report.")
    return lines


def _serves(chosen: Row) -> str:
    return f"What serves is {chosen[C.MODEL]}"


def _why(chosen: Row, facts: Facts) -> str:
    """Why it serves: its evidence on older folds."""
    if chosen[C.NDCG] is None:
        return f"Nothing could be compared on older folds: {chosen[C.SELECTED_ON]}."
    if not chosen[C.LEARNS]:
        learning = [one[C.MODEL] for one in facts.serving if one[C.LEARNS]]
        not_better = f"; none of {', '.join(sorted(learning))} is better for sure" if learning else ""
        return f"It is the best single source on older folds{not_better}."
    return f"On older folds it is better than the best single source: {against_single(chosen)} vs {chosen[C.COMPARED_WITH]}."


def against_single(row: Row) -> str:
    """A row of ``serving_models`` beside the best single source, in per cent, with its adjusted interval."""
    if row[C.MODEL] == row[C.COMPARED_WITH] or row[C.NDCG] is None:
        return "-"
    values = [row[name] for name in (C.DIFFERENCE, C.ADJUSTED_LOW, C.ADJUSTED_HIGH)]
    base = row[C.NDCG] - row[C.DIFFERENCE]
    if base <= 0:
        mid, low, high = (f"{value:+.4f}" for value in values)
        return f"{mid} [{low}, {high}]"
    mid, low, high = (f"{100 * value / base:+.1f}" for value in values)
    return f"{mid} % [{low}, {high}]"


def _judged(row: Row, k: int) -> str:
    return f"NDCG@{k} is {value_of(row)}, over {row[C.NUM_USERS]:,} customers with targets."


def _compared(row: Row) -> str:
    said = verdict(row)
    if not said:
        return "This is the baseline." if row[C.MODEL] == BASELINE else ""
    if said == UNSURE:
        return (
            f"There is no sure difference to popularity: {difference(row).removesuffix(': ' + said)}, which holds zero."
        )
    return f"That is {said} than popularity's: {difference(row).removesuffix(': ' + said)}."
