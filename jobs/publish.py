"""publish: checks the staged lists, and only if all checks hold makes them the lists that downstream systems read.

./spark-submit.sh jobs/publish.py --set publish.min_overlap=0.3
"""

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.evaluation.folds import select_folds_before
from xrec.generators.sources import serving_sources
from xrec.ranking.eligibility import check_eligible
from xrec.ranking.evidence import JudgedFold, beside_popularity
from xrec.ranking.lists import check_made_for, lists_and_earlier
from xrec.ranking.publishing import NOT_COMPARED, check_staged, require_all
from xrec.ranking.serving import read_model
from xrec.runs.filters import check_staged_lists
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``recommendations`` of the main fold's date, where the staged lists pass the gate."""
    tables, settings, fold = context.tables, context.settings, context.served_fold
    run_date, scope = fold.as_of.date().isoformat(), settings.ranking.scope
    model = read_model(tables.read("serving_models"), fold.name, scope)
    lists, published = lists_and_earlier(tables, fold)
    check_made_for(lists, fold, model)
    quality = None
    if select := select_folds_before(fold, context.folds):
        judged = JudgedFold.read(tables, select[-1], scope, [*serving_sources(settings), C.FUSION])
        quality = beside_popularity(judged, model, settings.evaluation, scope=scope, seed=settings.seed)
    # Popularity proposes to everybody for whom anything is left that somebody bought.
    proposed = tables.read("candidates", fold=fold.name).where(
        (F.col(C.SCOPE) == scope) & (F.col(C.SOURCE) == C.POPULARITY)
    )
    served = context.users_served().select(C.USER_ID, C.USER_IDX)
    users = proposed.select(C.USER_IDX, F.size(C.ITEMS).alias(C.POSSIBLE)).join(served, C.USER_IDX, how="left_semi")
    checks = check_staged(lists, published, users, quality, settings.publish, top_k=settings.ranking.top_k)
    require_all(checks, run_date)
    items, interactions = tables.read("items"), tables.read("interactions", fold=fold.name)
    with_items = lists.join(items.select(C.ITEM_ID, C.ITEM_IDX), C.ITEM_ID, how="left")
    check_eligible(with_items, items, interactions, tables.read("user_categories", fold=fold.name), scope=scope)
    check_staged_lists(context)
    staged = tables.read("staged_recommendations", run_date=run_date).drop(C.VERSIONS)
    # Who opted out since the lists were made gets none.
    version = tables.write("recommendations", staged.join(served, C.USER_ID, how="left_semi"), run_date=run_date)
    said = {"not_below_popularity": NOT_COMPARED} if quality is None and settings.publish.not_below_popularity else {}
    return {"published": f"{run_date} as version {version}", **said, **{check.name: check.said for check in checks}}


if __name__ == "__main__":
    main("publish", run)
