"""balance: weigh and resample each fold's training rows by category and user, and tell each category before and after.

./spark-submit.sh jobs/balance.py --set balance.alpha=0.75 --set balance.user_alpha=0.5 --set balance.min_rows=100
./spark-submit.sh jobs/balance.py --config conf/my_shop.yaml --set feedback.ignored_weight=1 --set feedback.bought_weight=1
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec import columns as C
from xrec.evaluation.folds import histories_of
from xrec.features.balance import balance_events, balance_report, describe_balance
from xrec.features.feedback import describe_feedback, feedback_of
from xrec.features.interactions import counts, weigh
from xrec.features.outliers import require_limits, winsorise
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``training_events``, ``balance_report`` and, where exposures teach anything, ``feedback`` of all folds of the run."""
    tables, settings, folds = context.tables, context.settings, context.folds
    events = context.indexed_events()
    names = [fold.name for fold in folds]
    limits = require_limits(context.read_folds("value_limits"), folds)
    weighted = weigh(winsorise(histories_of(events, folds), limits), settings.weights)
    counting = weighted.withColumn(C.COUNTING, counts(settings.categories))
    tables.write("training_events", balance_events(counting, settings.balance, settings.seed), fold=names)
    report = balance_report(context.read_folds("training_events"), tables.read("items"))
    tables.write("balance_report", report, fold=names)
    figures = describe_balance(tables.read("balance_report", fold=context.main_fold.name), settings.balance)
    if settings.feedback.is_on:
        shown = context.indexed_exposures()
        taught = [
            feedback_of(shown, events, fold, settings.feedback, settings.weights, settings.categories) for fold in folds
        ]
        tables.write("feedback", reduce(DataFrame.unionByName, taught), fold=names)
        figures |= describe_feedback(tables.read("feedback", fold=context.main_fold.name))
    return figures


if __name__ == "__main__":
    main("balance", run)
