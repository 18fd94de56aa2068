"""evaluate: judge every source's lists of the main fold by its cross-category targets, beside popularity.

./spark-submit.sh jobs/evaluate.py --set evaluation.ks=[10,20]
"""

from xrec.evaluation.report import describe_metrics, judge
from xrec.features.buyers import num_buyers_of
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute
from xrec.storage.shared import shared_folder


def run(context: StageContext) -> Figures:
    """Write ``metrics`` of this run: the main fold alone, because a select fold has picked settings and is never reported."""
    tables, settings, fold = context.tables, context.settings, context.main_fold
    with shared_folder(f"{absolute(settings.storage.artifacts_root)}/shared/evaluate-{fold.name}") as folder:
        metrics = judge(
            tables.read("candidates", fold=fold.name),
            tables.read("targets", fold=fold.name),
            tables.read("items"),
            num_buyers_of(tables.read("interactions", fold=fold.name)),
            tables.read("user_categories", fold=fold.name),
            fold,
            settings.evaluation,
            folder,
            seed=settings.seed,
            run_id=context.run_id,
        )
        tables.write("metrics", metrics, run_id=context.run_id)
    return describe_metrics(tables.read("metrics", run_id=context.run_id), fold, settings.evaluation)


if __name__ == "__main__":
    main("evaluate", run)
