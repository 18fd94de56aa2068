"""Tables of what is proposed, what serves, and what goes out."""

from __future__ import annotations

from xrec import columns as C
from xrec.lists import LIST_COLUMNS
from xrec.schemas.contract import Table

_RECOMMENDED = (
    "run_date date, user_id string, rank int, item_id string, category string, score double, reason string, "
    "source string, data_version bigint, fold string, model_version string"
)
"""The gate lets rows through as they are."""

SERVING = (
    Table(
        name="candidates",
        row="a list: the items that a source proposed to a user within a scope, best first, with their scores",
        columns=f"fold string, source string, scope string, user_idx int, {LIST_COLUMNS}",
        key=(C.FOLD, C.SOURCE, C.SCOPE, C.USER_IDX),
        partitions=(C.FOLD, C.SOURCE),
        owned_by=(C.FOLD, C.SOURCE),
        lists=(C.ITEMS, C.SCORES),
        made_by="candidates (blend: blend; rankers: train_rankers; served: choose)",
    ),
    Table(
        name="blend_weights",
        row="a source's weight in the blend of a fold and scope, with the older folds that it was chosen on",
        columns="fold string, scope string, source string, weight double, selected_on string, ndcg double, ndcg_popularity double",
        key=(C.FOLD, C.SCOPE, C.SOURCE),
        made_by="blend",
    ),
    Table(
        name="serving_models",
        row=(
            "a model that could serve a fold in a scope: its NDCG@10 on older folds by lists that knew nothing later, and its "
            "difference to a single source (compared_with) there, with an interval that holds for all that learn at once"
        ),
        columns=(
            "fold string, scope string, model string, learns boolean, chosen boolean, ndcg double, low double, high double, "
            "compared_with string, difference double, adjusted_low double, adjusted_high double, num_users bigint, "
            "selected_on string"
        ),
        key=(C.FOLD, C.SCOPE, C.MODEL),
        made_by="choose",
    ),
    Table(
        name="staged_recommendations",
        row="rank r of a user on a run date, not published yet",
        columns=_RECOMMENDED,
        key=(C.RUN_DATE, C.USER_ID, C.RANK),
        partitions=(C.RUN_DATE,),
        owned_by=(C.RUN_DATE,),
        made_by="recommend",
    ),
    Table(
        name="recommendations",
        row="rank r of a user on a run date",
        columns=_RECOMMENDED,
        key=(C.RUN_DATE, C.USER_ID, C.RANK),
        partitions=(C.RUN_DATE,),
        owned_by=(C.RUN_DATE,),
        made_by="publish",
    ),
)
