"""recommend: the main fold's lists, with reasons and versions, staged for the gate; a rerun of a date replaces that date only.

./spark-submit.sh jobs/recommend.py --set ranking.top_k=10
"""

from pyspark.sql import functions as F

from xrec import columns as C
from xrec.generators.sources import serving_sources
from xrec.ranking.blend import read_choices
from xrec.ranking.lists import (
    check_lists,
    describe_lists,
    lists_of,
    model_version_of,
    recommendation_rows,
)
from xrec.ranking.reasons import with_reasons
from xrec.ranking.serving import contributing, read_model
from xrec.runs.filters import check_recommended
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write ``staged_recommendations`` of the main fold's date."""
    tables, ranking, fold = context.tables, context.settings.ranking, context.served_fold
    items = tables.read("items").select(C.ITEM_ID, C.ITEM_IDX, C.CATEGORY, C.RECOMMENDABLE)
    interactions = tables.read("interactions", fold=fold.name)
    user_categories = tables.read("user_categories", fold=fold.name)
    candidates = tables.read("candidates", fold=fold.name)
    choices = read_choices(tables.read("blend_weights").where(F.col(C.FOLD) == fold.name), ranking)
    model = read_model(tables.read("serving_models"), fold.name, ranking.scope)
    weights = contributing(model, choices, context.settings, serving_sources(context.settings))
    lists = lists_of(candidates, weights, ranking, fold)
    check_lists(lists, items, interactions, user_categories, scope=ranking.scope)
    check_recommended(context, lists)
    explained = with_reasons(
        lists.join(items, C.ITEM_IDX, how="inner"),
        interactions,
        user_categories,
        items,
        as_of=None if context.settings.log.time.unit == "order" else fold.as_of,
        recent_days=ranking.recent_days,
    )
    rows = recommendation_rows(
        explained,
        context.users_served(),
        fold=fold,
        data_version=tables.read_versions["judged_events"],
        model_version=model_version_of(tables, candidates, model),
    )
    run_date = fold.as_of.date().isoformat()
    tables.write("staged_recommendations", rows, run_date=run_date)
    return {
        "run_date": run_date,
        "model": model,
        **describe_lists(tables.read("staged_recommendations", run_date=run_date), ranking),
    }


if __name__ == "__main__":
    main("recommend", run)
