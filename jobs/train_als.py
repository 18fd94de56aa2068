"""train_als: MLlib's implicit ALS on each fold's training events, to vectors of users and items.

./spark-submit.sh jobs/train_als.py --set als.rank=128 --set als.reg_param=0.3
"""

from functools import reduce

from pyspark.sql import DataFrame

from xrec.generators.als import MODEL, describe_vectors, train_als
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write the vectors of model ``als`` of all folds of the run."""
    tables, settings, folds = context.tables, context.settings, context.folds
    training_events = tables.read("training_events")
    feedback = tables.read("feedback") if settings.feedback.is_on else None
    with context.shared_folder() as folder:
        vectors = [
            train_als(training_events, fold, settings.als, settings.seed, checkpoints=folder.path, feedback=feedback)
            for fold in folds
        ]
        names = [fold.name for fold in folds]
        tables.write("vectors", reduce(DataFrame.unionByName, vectors), fold=names, model=MODEL)
    return describe_vectors(tables.read("vectors", fold=context.main_fold.name, model=MODEL), settings.als)


if __name__ == "__main__":
    main("train_als", run)
