"""balance: weigh and resample each fold's training rows by category, and materialise them.

./spark-submit.sh jobs/balance.py --set balance.alpha=0.75
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.evaluation.folds import history_of
from xrec.features.balance import balance_events, describe_balance
from xrec.features.interactions import weigh
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``training_events`` of all folds of the run."""
    tables, settings, folds = context.tables, context.settings, context.folds
    events = context.indexed_events()
    balanced = [
        balance_events(weigh(history_of(events, fold), fold, settings.weights), settings.balance, fold, settings.seed)
        for fold in folds
    ]
    tables.write("training_events", reduce(DataFrame.unionByName, balanced), fold=[fold.name for fold in folds])
    return describe_balance(tables.read("training_events", fold=context.main_fold.name), settings.balance)


if __name__ == "__main__":
    main("balance", run)
