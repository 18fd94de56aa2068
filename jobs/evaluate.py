"""evaluate: judge every source's lists of the main fold by its cross-category targets, beside popularity.

./spark-submit.sh jobs/evaluate.py --set evaluation.ks=[10,20]
"""

from xrec.evaluation.categories import category_flow
from xrec.evaluation.report import FoldRows, describe_metrics, judge
from xrec.features.buyers import num_buyers_of
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute
from xrec.storage.shared import shared_folder


def run(context: StageContext) -> Figures:
    """Write ``metrics`` and ``category_flow``: of the main fold alone, because a select fold has picked settings."""
    tables, settings, fold, run_id = context.tables, context.settings, context.main_fold, context.run_id
    rows = FoldRows(
        fold=fold,
        candidates=tables.read("candidates", fold=fold.name),
        targets=tables.read("targets", fold=fold.name),
        items=tables.read("items"),
        user_categories=tables.read("user_categories", fold=fold.name),
        buyers=num_buyers_of(tables.read("interactions", fold=fold.name)),
    )
    with shared_folder(f"{absolute(settings.storage.artifacts_root)}/shared/evaluate-{fold.name}") as folder:
        metrics = judge(rows, settings.evaluation, folder, seed=settings.seed, run_id=run_id)
        tables.write("metrics", metrics, run_id=run_id)
    tables.write("category_flow", category_flow(rows, k=settings.evaluation.ks[0], run_id=run_id), run_id=run_id)
    return describe_metrics(tables.read("metrics", run_id=run_id), fold, settings.evaluation)


if __name__ == "__main__":
    main("evaluate", run)
