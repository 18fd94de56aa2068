"""evaluate: judge every source's lists of the main fold by its cross-category targets, beside popularity.

./spark-submit.sh jobs/evaluate.py --set evaluation.ks=[10,20]
"""

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.categories import category_flow
from xrec.evaluation.folds import Fold
from xrec.evaluation.reliability import ece_of, reliability_of
from xrec.evaluation.report import FoldRows, describe_metrics, judge
from xrec.evaluation.stability import stability_of
from xrec.features.buyers import num_buyers_of
from xrec.generators.sources import models_of, sources_of
from xrec.ranking.lists import lists_and_earlier
from xrec.ranking.serving import evidence_of
from xrec.runs.looks import record_look
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``metrics``, ``reliability``, ``category_flow``: in a backtest not of select folds, which have picked settings."""
    tables, settings, fold, run_id = context.tables, context.settings, context.main_fold, context.run_id
    folds = [rows_of(context, fold) for fold in context.judged_folds]
    with context.shared_folder() as folder:
        metrics = judge(folds, settings.evaluation, folder, seed=settings.seed)
        lists, earlier = lists_and_earlier(tables, fold) if tables.exists("staged_recommendations") else (None, None)
        if lists is not None and earlier is not None:
            metrics = metrics.unionByName(
                stability_of(
                    lists,
                    earlier,
                    settings.evaluation,
                    fold=fold.name,
                    model=C.SERVED,
                    scope=settings.ranking.scope,
                    seed=settings.seed,
                )
            )
        if fold.has_targets:
            bins = folder.keep(
                reliability_of(folds[-1], settings.ranker.models, settings.ranking.scope, settings.evaluation)
            )
            tables.write("reliability", bins.withColumn(C.RUN_ID, F.lit(run_id)), run_id=run_id)
            metrics = metrics.unionByName(ece_of(bins, settings.evaluation))
        if settings.folds.purpose != "select" and tables.exists("serving_models"):
            chosen = tables.read("serving_models").where(F.col(C.FOLD) == fold.name)
            metrics = metrics.unionByName(evidence_of(chosen), allowMissingColumns=True)
        tables.write("metrics", metrics.withColumn(C.RUN_ID, F.lit(run_id)), run_id=run_id)
    flow = category_flow(folds[-1], k=settings.evaluation.ks[0], run_id=run_id)
    tables.write("category_flow", flow, run_id=run_id)
    figures = describe_metrics(tables.read("metrics", run_id=run_id), fold, settings.evaluation)
    if settings.folds.purpose == "test":
        figures["looks"] = record_look(context, figures)
    return figures


def rows_of(context: StageContext, fold: Fold) -> FoldRows:
    """What a fold is judged by."""
    tables, settings = context.tables, context.settings
    return FoldRows(
        fold=fold,
        models=models_of(settings),
        scopes=settings.scopes,
        candidates=tables.read("candidates", fold=fold.name),
        targets=tables.read("targets", fold=fold.name),
        items=tables.read("items"),
        user_categories=tables.read("user_categories", fold=fold.name),
        buyers=num_buyers_of(tables.read("interactions", fold=fold.name)),
        proposing=sources_of(settings),
        num_candidates=settings.ranking.candidates_per_source,
    )


if __name__ == "__main__":
    main("evaluate", run)
