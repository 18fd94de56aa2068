"""judge: which events count, and which do not and why: repeats, returns, users who are no persons or opted out.

./spark-submit.sh jobs/judge.py --set log_rules.return_days=30 --set persons.max_events_a_day=300
"""

from xrec import columns as C
from xrec.logrules.judge import describe_judged, judge, persons_of
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``persons`` and ``judged_events`` of the whole log."""
    tables, settings = context.tables, context.settings
    events = tables.read("events").drop(C.VERSIONS, C.DELIVERY_ID)
    tables.write("persons", persons_of(events, settings))
    persons = tables.read("persons")
    opt_outs = tables.read("opt_outs") if tables.exists("opt_outs") else None
    tables.write("judged_events", judge(events, persons, settings, opt_outs))
    return describe_judged(tables.read("judged_events"), persons, num_clean=events.count())


if __name__ == "__main__":
    main("judge", run)
