"""Tables of what came of it: figures, and the record of runs."""

from __future__ import annotations

from xrec import columns as C
from xrec.schemas.contract import Table

RESULTS = (
    Table(
        name="metrics",
        row=(
            "one figure of one model on one slice, with its interval, its difference to popularity, and the wider (adjusted) "
            "interval of the difference that holds for all models of the slice at once"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, metric string, k int, value double, low double, "
            "high double, difference double, difference_low double, difference_high double, adjusted_low double, "
            "adjusted_high double, num_users bigint"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.METRIC, C.K),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="reliability",
        row=(
            "a bin of a model's listed rows by their score, which is a probability: its mean (predicted), and the share that was "
            "bought (observed), with its interval"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, bin int, num_rows bigint, num_users bigint, "
            "predicted double, observed double, low double, high double"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.BIN),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="category_flow",
        row=(
            "a category of items and the users of a main category, by model and slice: pairs (user, item) that were shown up to "
            "rank k, that were targets, and that were both"
        ),
        columns=(
            "run_id string, fold string, model string, slice string, main_category string, category string, k int, "
            "num_shown bigint, num_targets bigint, num_hits bigint"
        ),
        key=(C.RUN_ID, C.FOLD, C.MODEL, C.SLICE, C.MAIN_CATEGORY, C.CATEGORY),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="looks",
        row="a run that judged a test fold, with the commit and the settings (JSON) that it ran with and the figures that it saw",
        columns=(
            "run_id string, fold string, looked_ts timestamp, code_version string, settings_hash string, settings string, "
            "figures map<string,string>"
        ),
        key=(C.RUN_ID, C.FOLD),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="evaluate",
    ),
    Table(
        name="trials",
        row="settings that a search tried, with their NDCG at k over the users of the select folds; trial 0 is the control",
        columns=(
            "run_id string, trial int, settings string, selected_on string, scope string, k int, ndcg double, "
            "num_users bigint, chosen boolean"
        ),
        key=(C.RUN_ID, C.TRIAL),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID,),
        made_by="compare (with --trials)",
    ),
    Table(
        name="experiment_results",
        row=(
            "a metric of an arm of an experiment on a slice (kind: all, category or segment), its mean a user with interval, its "
            "difference to the control, the wider (adjusted) interval that holds for all slices of the kind at once, and what may "
            "be said of it"
        ),
        columns=(
            "experiment string, arm string, kind string, slice string, metric string, value double, low double, high double, "
            "difference double, difference_low double, difference_high double, adjusted_low double, adjusted_high double, "
            "num_users bigint, num_active bigint, srm_p_value double, verdict string"
        ),
        key=(C.EXPERIMENT, C.ARM, C.KIND, C.SLICE, C.METRIC),
        owned_by=(C.EXPERIMENT,),
        partitions=(C.EXPERIMENT,),
        made_by="read_experiment",
    ),
    Table(
        name="stage_runs",
        row="a stage that ended, with the table versions that it wrote and the figures that it reports",
        columns=(
            "run_id string, stage string, started_ts timestamp, seconds double, settings_hash string, "
            "outputs map<string,bigint>, figures map<string,string>"
        ),
        key=(C.RUN_ID, C.STAGE),
        partitions=(C.RUN_ID,),
        owned_by=(C.RUN_ID, C.STAGE),
        made_by="every stage",
    ),
)
