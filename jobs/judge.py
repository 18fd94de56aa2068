"""judge: who is who, which events count, and which do not and why: repeats, returns, no persons, opted out.

./spark-submit.sh jobs/judge.py --set log_rules.return_days=30 --set persons.max_events_a_day=300
"""

from pyspark import StorageLevel
from pyspark.sql import DataFrame

from xrec import columns as C
from xrec.logrules.identity import persons_opted_out, with_persons
from xrec.logrules.judge import check_uses, describe_judged, judge, persons_of
from xrec.logrules.redelivered import merge_deliveries
from xrec.runs.stage import Figures, StageContext, main
from xrec.runs.touched import note_of, touched_persons


def run(context: StageContext) -> Figures:
    """Write ``persons`` and ``judged_events``, of those alone whose events, identity or opt-out changed since the last time."""
    tables, settings = context.tables, context.settings
    delivered = tables.read("events").drop(C.VERSIONS, C.SAID)
    identities, opt_outs = (
        tables.read(name).drop(C.VERSIONS) if tables.exists(name) else None for name in ("identities", "opt_outs")
    )
    left_out = None if opt_outs is None else persons_opted_out(opt_outs, identities, settings)
    note = note_of(tables, settings)
    touched = touched_persons(tables, settings, made=("persons", "judged_events"))
    all_events = with_persons(delivered, identities, settings)
    if touched is None:
        events = merge_deliveries(all_events)
        tables.write("persons", persons_of(events, settings), note=note)
        judged = judge(events, tables.read("persons"), settings, left_out)
        tables.write("judged_events", judged, note=note)
        check_uses(tables.read("judged_events"), events)
    else:
        touched = touched.persist(StorageLevel.DISK_ONLY)
        events = merge_deliveries(_of(all_events, touched))
        tables.merge("persons", persons_of(events, settings), within=touched, note=note)
        judged = judge(events, _of(tables.read("persons"), touched), settings, left_out)
        tables.merge("judged_events", judged, within=touched, note=note)
        check_uses(_of(tables.read("judged_events"), touched), events)
    figures = describe_judged(tables.read("judged_events"), tables.read("persons"), num_delivered=delivered.count())
    return {**figures, "users_judged": "all" if touched is None else f"{touched.count():,} whose events changed"}


def _of(rows: DataFrame, persons: DataFrame) -> DataFrame:
    return rows.join(persons, C.USER_ID, how="left_semi")


if __name__ == "__main__":
    main("judge", run)
