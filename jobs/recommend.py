"""recommend: the main fold's lists, with reasons and versions; a rerun of a date replaces that date only.

./spark-submit.sh jobs/recommend.py --set ranking.scope=home --set ranking.top_k=10
"""

from xrec import columns as C
from xrec.logrules.identity import persons_opted_out
from xrec.ranking.blend import read_choices
from xrec.ranking.lists import (
    check_lists,
    describe_lists,
    lists_of,
    model_version_of,
    recommendation_rows,
    users_served,
)
from xrec.ranking.reasons import with_reasons
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write the recommendations of the main fold's date."""
    tables, ranking, fold = context.tables, context.settings.ranking, context.main_fold
    items = tables.read("items").select(C.ITEM_ID, C.ITEM_IDX, C.CATEGORY, C.RECOMMENDABLE)
    interactions = tables.read("interactions", fold=fold.name)
    user_categories = tables.read("user_categories", fold=fold.name)
    candidates = tables.read("candidates", fold=fold.name)
    choices = read_choices(tables.read("blend_weights"), ranking)
    lists = lists_of(candidates, choices, ranking, fold)
    check_lists(lists, items, interactions, user_categories, scope=ranking.scope)
    explained = with_reasons(lists.join(items, C.ITEM_IDX, how="inner"), interactions, user_categories, items)
    opt_outs, identities = (tables.read(name) if tables.exists(name) else None for name in ("opt_outs", "identities"))
    left_out = None if opt_outs is None else persons_opted_out(opt_outs, identities, context.settings)
    rows = recommendation_rows(
        explained,
        users_served(tables.read("users"), left_out),
        fold=fold,
        data_version=tables.read_versions["judged_events"],
        model_version=model_version_of(tables, candidates),
    )
    run_date = fold.as_of.date().isoformat()
    tables.write("recommendations", rows, run_date=run_date)
    return {"run_date": run_date, **describe_lists(tables.read("recommendations", run_date=run_date), ranking)}


if __name__ == "__main__":
    main("recommend", run)
