"""candidates: every source's exact top K of every user, in both scopes, excluded and seen items masked first.

./spark-submit.sh jobs/candidates.py --set ranking.candidates_per_source=200
"""

from xrec.generators.sources import candidates_of, describe_candidates, sources_of, users_of_folds
from xrec.ranking.eligibility import eligible_items
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.files import absolute
from xrec.storage.shared import shared_folder


def run(context: StageContext) -> Figures:
    """Write the candidates of each source, all folds of the run in one write."""
    tables, settings = context.tables, context.settings
    eligible = eligible_items(tables.read("items"))
    sources = sources_of(settings)
    place = f"{absolute(settings.storage.artifacts_root)}/shared/candidates-{context.main_fold.name}"
    proposing = users_of_folds(tables, eligible, context.folds, settings.scopes, settings.feedback)
    with proposing as users, shared_folder(place) as folder:
        for source in sources:
            rows = candidates_of(source, tables, users, eligible, settings, folder)
            tables.write("candidates", rows, fold=[fold.name for fold in users], source=source)
            context.say(f"{source}: done")
    return describe_candidates(tables.read("candidates", fold=context.main_fold.name), list(sources))


if __name__ == "__main__":
    main("candidates", run)
