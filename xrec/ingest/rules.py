"""What a row alone can decide: its values, and every reason to reject it."""

from __future__ import annotations

from datetime import date, datetime, timezone
from itertools import chain

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings
from xrec.ingest.mapping import DAMAGE, TEXT, expected_time, plausible, time_in, timestamp_of
from xrec.ingest.privacy import WITHHELD, hidden

MALFORMED_LINE = "_line"
"""The key of a malformed line in the quarantine's ``raw``."""

_NUMBER = r"^[+-]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?$"

FIELD_OF_REASON = {
    "row_malformed": None,
    "user_id_missing": C.USER_ID,
    "user_id_too_long": C.USER_ID,
    "user_id_damaged": C.USER_ID,
    "item_id_missing": C.ITEM_ID,
    "item_id_too_long": C.ITEM_ID,
    "item_id_damaged": C.ITEM_ID,
    "event_ts_missing": C.EVENT_TS,
    "event_ts_unparsable": C.EVENT_TS,
    "event_ts_too_early": C.EVENT_TS,
    "event_ts_too_late": C.EVENT_TS,
    "event_type_missing": C.EVENT_TYPE,
    "event_type_unknown": C.EVENT_TYPE,
    "quantity_unparsable": C.QUANTITY,
    "quantity_not_positive": C.QUANTITY,
    "quantity_too_large": C.QUANTITY,
    "price_unparsable": C.PRICE,
    "price_not_positive": C.PRICE,
    "price_too_large": C.PRICE,
}
"""Every reason, in the order in which a row carries them, with the field that it is about."""


def apply_rules(mapped: DataFrame, settings: Settings, key: bytes | None = None) -> DataFrame:
    """Mapped raw rows to the same rows with the events' columns, ``reasons`` (empty: clean) and ``raw`` (clean: null).

    A row carries every reason that holds, except that of a malformed row no column is trusted: it is ``row_malformed``
    alone. A missing quantity or price is no fault, it stays null; prices are in the log's own currency. ``raw`` is the source row
    as JSON, or ``{"_line": "..."}`` where it is malformed. With a ``key`` (:mod:`xrec.ingest.privacy`) users are pseudonyms, and
    ``raw`` has the mapped columns alone.
    """
    event_time = time_in(mapped, settings.log.columns.event_ts, settings.log.time)
    has_type_column = settings.log.columns.event_type is not None
    rows = mapped.withColumns(
        {
            C.USER_ID: hidden(F.col(C.USER_ID + TEXT), key),
            C.ITEM_ID: F.col(C.ITEM_ID + TEXT),
            C.EVENT_TYPE: event_type_of(settings) if has_type_column else F.lit(settings.log.event_type),
            C.EVENT_TS: timestamp_of(F.col(C.EVENT_TS + TEXT), event_time),
            C.QUANTITY: number_of(F.col(C.QUANTITY + TEXT)),
            C.PRICE: number_of(F.col(C.PRICE + TEXT)),
        }
    ).withColumn(C.EVENT_TS, plausible(F.col(C.EVENT_TS)))  # a step of its own, so that a time is parsed once
    if settings.log.negative == "return":
        rows = negatives_to_returns(rows)
    log, time = settings.log, F.col(C.EVENT_TS)
    faults = {}
    for name in (C.USER_ID, C.ITEM_ID):
        text = F.col(name + TEXT)
        faults[f"{name}_missing"] = text.isNull()
        faults[f"{name}_too_long"] = F.length(text) > log.max_key_length
        faults[f"{name}_damaged"] = text.rlike(DAMAGE)
    is_order = log.time.unit == "order"
    faults |= {
        "event_ts_missing": F.col(C.EVENT_TS + TEXT).isNull(),
        "event_ts_unparsable": F.col(C.EVENT_TS + TEXT).isNotNull() & time.isNull(),
        "event_ts_too_early": F.lit(not is_order) & (time < F.lit(_midnight(log.time.earliest))),
        # A day of grace: the log's zone may be given wrongly, and clocks differ.
        "event_ts_too_late": F.lit(not is_order) & (time > F.now() + F.expr("interval 1 day")),
        "event_type_missing": F.col(C.EVENT_TYPE).isNull(),
        "event_type_unknown": ~F.col(C.EVENT_TYPE).isin(*settings.weights.event_types, C.RETURN),
    }
    for name, most in ((C.QUANTITY, log.max_quantity), (C.PRICE, log.max_price)):
        faults[f"{name}_unparsable"] = F.col(name + TEXT).isNotNull() & F.col(name).isNull()
        faults[f"{name}_not_positive"] = F.col(name) <= 0
        faults[f"{name}_too_large"] = F.col(name) > most
    assert set(faults) == set(FIELD_OF_REASON) - {"row_malformed"}
    ordered = [reason for reason in FIELD_OF_REASON if reason in faults]
    found = F.array_compact(F.array(*[F.when(faults[reason], F.lit(reason)) for reason in ordered]))
    reasons = F.when(F.col(C.MALFORMED).isNotNull(), F.array(F.lit("row_malformed"))).otherwise(found)
    line, row = F.col(C.MALFORMED), F.col(C.SOURCE_ROW)
    if key is not None:
        line, row = F.lit(WITHHELD), _mapped_alone(settings)
    line = F.to_json(F.struct(line.alias(MALFORMED_LINE)))
    raw = F.when(F.col(C.MALFORMED).isNotNull(), line).when(~is_clean(), F.to_json(row))
    return rows.withColumn(C.REASONS, reasons).withColumn(C.RAW, raw)


def _mapped_alone(settings: Settings) -> Column:
    """The source's mapped columns under its own names, the user as a pseudonym: a column that no setting names never enters."""
    mapped = {name: field for field, name in settings.log.columns.model_dump().items() if name is not None}
    return F.struct(
        *[F.col(field if field == C.USER_ID else field + TEXT).alias(name) for name, field in mapped.items()]
    )


def negatives_to_returns(rows: DataFrame) -> DataFrame:
    """Purchases of a negative quantity, or of a negative price where no quantity is given, to returns of positive ones."""
    is_negative = F.coalesce(F.col(C.QUANTITY) < 0, F.col(C.QUANTITY + TEXT).isNull() & (F.col(C.PRICE) < 0))
    goes_back = F.col(C.EVENT_TYPE).isin(C.PURCHASE, C.RETURN) & F.coalesce(is_negative, F.lit(False))
    return rows.withColumns(
        {
            C.EVENT_TYPE: F.when(goes_back, F.lit(C.RETURN)).otherwise(F.col(C.EVENT_TYPE)),
            C.QUANTITY: F.when(goes_back, F.abs(C.QUANTITY)).otherwise(F.col(C.QUANTITY)),
            C.PRICE: F.when(goes_back, F.abs(C.PRICE)).otherwise(F.col(C.PRICE)),
        }
    )


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)


def is_clean() -> Column:
    """Whether a row of :func:`apply_rules` has no reason against it."""
    return F.size(C.REASONS) == 0


def number_of(text: Column) -> Column:
    """Text to a finite double; null where it is none: NaN, inf, 1e999, 0x1p3, 12d and 1,5 are no numbers."""
    return F.when(text.rlike(_NUMBER), text.try_cast("double"))


def event_type_of(settings: Settings) -> Column:
    """The source's word for the action, in our words; a word that ``log.event_types`` does not list stays."""
    text = F.col(C.EVENT_TYPE + TEXT)
    words = settings.log.event_types
    if not words:
        return text
    ours = F.create_map(*[F.lit(word) for word in chain.from_iterable(words.items())])
    return F.coalesce(ours[text], text)


def expected(reason: str, settings: Settings) -> str:
    """What a row needs so that the reason does not hold, for messages."""
    log, field = settings.log, FIELD_OF_REASON[reason]
    if field is None:
        return (
            "as many columns as the header has (or one JSON object a line); see log.file.options for sep and quote, and set "
            "multiLine: 'true' there for texts with line breaks in quotes"
        )
    words = ", ".join(settings.weights.event_types)
    wanted = {
        "missing": "a value",
        "too_long": f"at most log.max_key_length ({log.max_key_length}) characters",
        "damaged": "text without control or replacement characters; see encoding in log.file.options",
        "too_early": f"a time since log.time.earliest ({log.time.earliest}); see log.time.unit and log.time.zone",
        "too_late": "a time until now; see log.time.unit and log.time.zone",
        "unknown": f"one of weights.event_types ({words}); else map it in log.event_types",
        "unparsable": expected_time(log.time) if field == C.EVENT_TS else "a number with a decimal point",
        "not_positive": "a number above 0",
        "too_large": f"at most log.max_{field} ({getattr(log, 'max_' + field, 0):g})",
    }
    return wanted[reason.removeprefix(f"{field}_")]
