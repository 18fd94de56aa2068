"""candidates: every source's exact top K of every user, in each scope; what is excluded, seen or filtered is masked first.

In older folds, by which models only learn and are chosen, of those users who have targets there.

./spark-submit.sh jobs/candidates.py --set ranking.candidates_per_source=200
"""

from xrec.generators.sources import candidates_of, describe_candidates, sources_of, users_of_folds
from xrec.ranking.filters import describe_filters, eligible_of_folds
from xrec.runs.filters import filters_of
from xrec.runs.stage import Figures, StageContext, main


def run(context: StageContext) -> Figures:
    """Write the candidates of each source, all folds of the run in one write."""
    tables, settings, main_fold = context.tables, context.settings, context.main_fold
    items, filters = tables.read("items"), filters_of(context)
    eligible = eligible_of_folds(items, context.folds, filters)
    sources = sources_of(settings)
    scopes = {fold: context.scopes_of(fold) for fold in context.folds}
    proposing = users_of_folds(
        tables, eligible, scopes, settings.feedback, filters, with_targets=context.folds_of_targets
    )
    with proposing as users, context.shared_folder() as folder:
        for source in sources:
            rows = candidates_of(source, tables, users, eligible, settings, folder)
            tables.write("candidates", rows, fold=[fold.name for fold in users], source=source)
            context.say(f"{source}: done")
    return {
        **describe_candidates(tables.read("candidates", fold=main_fold.name), list(sources)),
        **describe_filters(eligible[main_fold], items, filters, main_fold),
    }


if __name__ == "__main__":
    main("candidates", run)
