"""read_experiment: loads what was shown (exposures), and judges an experiment by what was bought after it.

./spark-submit.sh jobs/read_experiment.py --config conf/my_shop.yaml --set exposures.delivery_id=2024-05-17
./spark-submit.sh jobs/read_experiment.py --config conf/my_shop.yaml --set experiment.name=spring --set experiment.window_days=7
"""

from xrec.experiments.exposures import require_either, write_exposures
from xrec.experiments.report import analyse, describe_results
from xrec.ingest.privacy import KEY_FIGURE, check_same_key, read_key
from xrec.runs.deliveries import figure_of_other_deliveries
from xrec.runs.stage import Figures, StageContext, main
from xrec.storage.tables import rows_from


def run(context: StageContext) -> Figures:
    """Load the delivery of ``exposures``, and write ``experiment_results``: each where the settings name it."""
    settings, tables = context.settings, context.tables
    require_either(settings)
    figures = {}
    if settings.exposures is not None:
        key = read_key(settings.privacy)
        # No delivery of the log is this one: all of them must have the same key.
        check_same_key(key, figure_of_other_deliveries(tables, "", KEY_FIGURE))
        figures = write_exposures(tables, settings, settings.exposures, key)
    if settings.experiment is not None:
        rows, uses = analyse(tables, context.indexed_events(), settings, settings.experiment)
        figures |= uses
        if rows:
            results = rows_from(context.spark, "experiment_results", rows)
            tables.write("experiment_results", results, experiment=settings.experiment.name)
            figures |= describe_results(rows, settings.experiment.arms)
    return figures


if __name__ == "__main__":
    main("read_experiment", run)
