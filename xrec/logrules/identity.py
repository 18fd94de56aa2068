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


def persons_ever(users: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Users (``platform``, ``user_id``) to every person who they are or ever were, as ``user_id``; once each."""
    alone = users.select(named_alone(settings, has_identities=identities is not None).alias(C.USER_ID))
    if identities is None:
        return alone.distinct()
    named = users.join(identities, [C.PLATFORM, C.USER_ID], how="inner").select(F.col(C.PERSON_ID).alias(C.USER_ID))
    return alone.unionByName(named).distinct()


def persons_opted_out(opt_outs: DataFrame, identities: DataFrame | None, settings: Settings) -> DataFrame:
    """Rows of ``opt_outs`` to the persons who are left out, as ``user_id``; once each."""
    has_platform = F.col(C.PLATFORM) != ""
    by_person = opt_outs.where(~has_platform).select(C.USER_ID)
    by_user = persons_ever(opt_outs.where(has_platform).select(C.PLATFORM, C.USER_ID), identities, settings)
    return by_person.unionByName(by_user).distinct()


def named_alone(settings: Settings, *, has_identities: bool) -> Column:
    """The person of a user whom the identity table does not name."""
    if settings.identity.shared_ids or (len(settings.sources) == 1 and not has_identities):
        return F.col(C.USER_ID)
    return F.concat_ws(":", C.PLATFORM, C.USER_ID)
