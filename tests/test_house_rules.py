"""The house's rules that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BRING_ROWS_TO_THE_DRIVER = {"collect", "toPandas", "toArrow", "toLocalIterator"}
KEEP_ROWS = {"cache", "persist", "checkpoint", "localCheckpoint"}

ALLOWED = {
    # The names of the files of a delivery, at most log.landing_files.
    ("xrec/ingest/landing.py", "_take_landed.take_batch", "collect"),
    # The K items of a list.
    ("xrec/evaluation/report.py", "cold_lists", "collect"),
    # A row a number of buyers: of N pairs at most sqrt(2 N).
    ("xrec/evaluation/beyond.py", "facts_of", "collect"),
    # A row a scope, kind of vector, grid point, category, source, fold, model, bucket, use of an event, attribute, file or set of
    # reasons.
    ("xrec/ingest/attributes.py", "describe_attributes", "collect"),
    ("xrec/generators/factors.py", "check_vectors", "collect"),
    ("xrec/ranking/blend.py", "choose_weights", "collect"),
    ("xrec/ranking/eligibility.py", "eligible_items", "collect"),
    ("xrec/evaluation/metrics.py", "sources_of", "collect"),
    ("xrec/features/index.py", "assign_dense_index", "collect"),
    ("xrec/features/item_content.py", "cold_shares", "collect"),
    ("xrec/features/outliers.py", "require_limits", "collect"),
    ("xrec/features/vocabulary.py", "check_vocabulary", "collect"),
    ("xrec/generators/als.py", "describe_vectors", "collect"),
    ("xrec/generators/sources.py", "describe_candidates", "collect"),
    ("xrec/ingest/cleaning.py", "_account", "collect"),
    ("xrec/ingest/reader.py", "count_rows_by_file", "collect"),
    ("xrec/logrules/judge.py", "describe_judged", "collect"),
    ("xrec/ranking/blend.py", "read_choices", "collect"),
    ("xrec/ranking/evidence.py", "choose_model", "collect"),
    ("xrec/ranking/evidence.py", "folds_of_evidence", "collect"),
    ("xrec/ranking/evidence.py", "_best_of", "collect"),
    ("xrec/ranking/evidence.py", "_compared", "collect"),
    ("xrec/ranking/lists.py", "model_version_of", "collect"),
    ("xrec/experiments/exposures.py", "write_exposures", "collect"),
    # Sums by arm, slice (a category, a segment) and metric.
    ("xrec/experiments/report.py", "analyse", "collect"),
    # At most filters.max_classes.
    ("xrec/ranking/filters.py", "_classes", "collect"),
    ("xrec/schemas/contract.py", "check_rows", "collect"),
    ("xrec/schemas/contract.py", "_check_keys", "collect"),
    # What a person is shown: the newest row a stage, a run's figures, five customers.
    ("xrec/storage/tables.py", "Tables.versions", "collect"),
    ("xrec/runs/ledger.py", "newest_runs", "collect"),
    ("xrec/runs/ledger.py", "runs_of", "collect"),
    ("xrec/runs/ledger.py", "runs_of_stages", "collect"),
    # The names of runs.
    ("xrec/runs/ledger.py", "runs_before", "collect"),
    ("xrec/runs/tracking.py", "_of_evaluation", "collect"),
    ("xrec/evaluation/report.py", "describe_metrics", "collect"),
    ("xrec/runs/summary.py", "print_models", "collect"),
    ("xrec/runs/summary.py", "_print_customers", "collect"),
    # What a page shows: the figures of a run, a row a category, the largest flows, the newest looks and trials, five customers.
    ("xrec/reporting/gather.py", "_cleaning", "collect"),
    ("xrec/reporting/gather.py", "_shares", "collect"),
    ("xrec/reporting/gather.py", "_metrics", "collect"),
    ("xrec/reporting/gather.py", "_reliability", "collect"),
    ("xrec/reporting/gather.py", "_blend", "collect"),
    ("xrec/reporting/gather.py", "_serving", "collect"),
    ("xrec/reporting/gather.py", "_flows", "collect"),
    ("xrec/reporting/gather.py", "_looks", "collect"),
    ("xrec/reporting/gather.py", "_trials", "collect"),
    ("xrec/reporting/customers.py", "draw_customers", "collect"),
    # Rows that are checked and counted before they are written; freed right after.
    ("xrec/storage/tables.py", "Tables.write", "persist"),
    ("xrec/storage/tables.py", "Tables.merge", "persist"),
    ("xrec/ingest/cleaning.py", "cleaned", "persist"),
    # Users whose events changed: at most half of all.
    ("jobs/judge.py", "run", "persist"),
    # A row a user and scope, which every source of candidates starts from; freed at the stage's end.
    ("xrec/generators/sources.py", "users_of_folds", "persist"),
    # A row a model and user of the select folds.
    ("xrec/ranking/evidence.py", "choose_model", "persist"),
}


def calls_of(tree: ast.AST, names: set[str], inside: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(qualified function, method) of every call of a method with one of these names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield ".".join(inside), node.func.attr
        named = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        yield from calls_of(node, names, (*inside, node.name) if named else inside)


def test_rows_come_to_the_driver_and_are_kept_in_the_listed_places_only() -> None:
    found = set()
    for file in [*ROOT.glob("xrec/**/*.py"), *ROOT.glob("jobs/*.py")]:
        tree = ast.parse(file.read_text())
        for function, method in calls_of(tree, BRING_ROWS_TO_THE_DRIVER | KEEP_ROWS):
            found.add((str(file.relative_to(ROOT)), function, method))
    assert found == ALLOWED
