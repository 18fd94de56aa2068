"""Users of platforms to persons, by what the identity table says of the time of each event."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from xrec import columns as C
from xrec.config import Settings

_TIMELINE, _NAME = "timeline", "name"


def with_persons(events: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Clean events with the person in ``user_id``, who is of the newest row of the identity table before the event.

    A user whom the table does not name is a person of his own: his key, or ``platform:key`` where the keys of several
    platforms must be told apart.
    """
    alone = named_alone(settings, has_identities=identities is not None)
    if identities is None:
        return events.withColumn(C.USER_ID, alone)
    step = F.struct(C.VALID_FROM_TS, C.PERSON_ID)
    timelines = identities.groupBy(C.PLATFORM, C.USER_ID).agg(F.sort_array(F.collect_list(step)).alias(_TIMELINE))
    past = F.filter(_TIMELINE, lambda step: step[C.VALID_FROM_TS] <= F.col(C.EVENT_TS))
    person = F.try_element_at(past, F.lit(-1))[C.PERSON_ID]
    joined = events.join(timelines, [C.PLATFORM, C.USER_ID], how="left")
    return joined.withColumn(C.USER_ID, F.coalesce(person, alone)).select(*events.columns)


def with_persons_now(rows: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows (``platform``, ``user_id``, ...) with the person of today in ``user_id``; without a platform (empty) it is one."""
    has_platform = F.col(C.PLATFORM) != ""
    timed = rows.where(has_platform).withColumn(C.EVENT_TS, F.now())
    return rows.where(~has_platform).unionByName(with_persons(timed, identities, settings).drop(C.EVENT_TS))


def with_persons_ever(rows: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows (``platform``, ``user_id``, ...) as a row for every person who the user is or ever was, in ``user_id``.

    Without a platform (empty) the user is a person already.
    """
    has_platform = F.col(C.PLATFORM) != ""
    by_user = rows.where(has_platform)
    alone = by_user.withColumn(C.USER_ID, named_alone(settings, has_identities=identities is not None))
    persons = rows.where(~has_platform).unionByName(alone)
    if identities is None:
        return persons
    named = by_user.join(
        identities.select(C.PLATFORM, C.USER_ID, C.PERSON_ID), [C.PLATFORM, C.USER_ID], how="inner"
    ).withColumn(C.USER_ID, F.col(C.PERSON_ID))
    return persons.unionByName(named.select(*rows.columns))


def persons_ever(users: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Users (``platform``, ``user_id``) to every person who they are or ever were, as ``user_id``; once each."""
    return with_persons_ever(users, identities, settings).select(C.USER_ID).distinct()


def persons_opted_out(opt_outs: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows of ``opt_outs`` to the persons who are left out, as ``user_id``; once each."""
    return persons_ever(opt_outs.select(C.PLATFORM, C.USER_ID), identities, settings)


def named_alone(settings: Settings, *, has_identities: bool) -> Column:
    """The person of a user whom the identity table does not name."""
    if settings.identity.shared_ids or (len(settings.sources) == 1 and not has_identities):
        return F.col(C.USER_ID)
    return F.concat_ws(":", C.PLATFORM, C.USER_ID)
