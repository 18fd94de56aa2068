"""evaluate: judge every source's lists of the main fold by its cross-category targets, beside popularity.

./spark-submit.sh jobs/evaluate.py --set evaluation.ks=[10,20]
"""

from xrec.evaluation.report import describe_metrics, judge
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``metrics`` of this run: the main fold alone, because a select fold has picked settings and is never reported."""
    tables, settings, fold = context.tables, context.settings, context.main_fold
    metrics = judge(
        tables.read("candidates", fold=fold.name),
        tables.read("targets", fold=fold.name),
        tables.read("items"),
        fold,
        settings.evaluation,
        seed=settings.seed,
        run_id=context.run_id,
    )
    tables.write("metrics", metrics, run_id=context.run_id)
    return describe_metrics(tables.read("metrics", run_id=context.run_id), fold, settings.evaluation)


if __name__ == "__main__":
    main("evaluate", run)
