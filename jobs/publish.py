"""publish: checks the staged lists, and only if all checks hold makes them the lists that downstream systems read.

./spark-submit.sh jobs/publish.py --set publish.min_overlap=0.3
"""

from xrec import columns as C
from xrec.evaluation.folds import select_folds_before
from xrec.ranking.lists import lists_and_earlier
from xrec.ranking.publishing import check_staged, require_all
from xrec.ranking.serving import JudgedFold, beside_popularity, read_model
from xrec.runs.filters import check_staged_lists
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``recommendations`` of the main fold's date, where the staged lists pass the gate."""
    tables, settings, fold = context.tables, context.settings, context.main_fold
    run_date, scope = fold.as_of.date().isoformat(), settings.ranking.scope
    lists, published = lists_and_earlier(tables, fold)
    quality = None
    if select := select_folds_before(fold, context.folds):
        judged = JudgedFold.read(tables, select[-1], scope)
        model = read_model(tables.read("serving_models"), fold.name, scope)
        quality = beside_popularity(judged, model, settings.evaluation, scope=scope, seed=settings.seed)
    had = tables.read("interactions", fold=fold.name).select(C.USER_IDX).distinct()
    users = had.join(context.users_served().select(C.USER_IDX), C.USER_IDX, how="left_semi")
    checks = check_staged(lists, published, users, quality, settings.publish, top_k=settings.ranking.top_k)
    require_all(checks, run_date)
    check_staged_lists(context)
    staged = tables.read("staged_recommendations", run_date=run_date).drop(C.VERSIONS)
    version = tables.write("recommendations", staged, run_date=run_date)
    return {"published": f"{run_date} as version {version}", **{check.name: check.said for check in checks}}


if __name__ == "__main__":
    main("publish", run)
