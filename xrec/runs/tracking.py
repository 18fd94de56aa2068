"""What MLflow knows of a run: settings, versions and figures, to be compared with those of other runs.

The tables stay the record; this is a copy of what they hold of one run, and may be made again at any time. One run of xrec is
one run of MLflow, whatever processes it had. MLflow takes seconds to import: it is imported once a run, at its end.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pyspark.sql import Row
from rich.console import Console

from xrec import columns as C
from xrec.config import Settings
from xrec.evaluation.report import HEADLINE, of_one_fold
from xrec.features.sequence_files import MODELS, model_location, read_exported_folds
from xrec.runs.ledger import StageRun, runs_of
from xrec.runs.versions import code_version, package_versions
from xrec.sequence.progress import load_progress
from xrec.storage.files import absolute
from xrec.storage.tables import Tables

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_ID_TAG = "xrec.run_id"
FINISHED, FAILED = "FINISHED", "FAILED"

_ENVIRONMENT = {
    # By default a server that is away is asked for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
}
_EPOCH = {"loss": "loss", "ndcg": "validation_ndcg", "hit_rate": "validation_hit_rate", "seconds": "epoch_seconds"}
"""Fields of an epoch, and what they are called."""
_NOT_IN_NAMES = re.compile(r"[^\w./: -]", re.ASCII)
_LONGEST = 500
"""Characters of a parameter's value that every server takes."""
_BATCH = 100
"""Parameters or tags a request; of metrics MLflow takes ten times as many."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure as MLflow has it."""

    name: str
    value: float
    step: int
    milliseconds: int
    """When it was known; the same figure logged again is the same row."""


def track(tables: Tables, settings: Settings, run_id: str, console: Console, status: str = FINISHED) -> None:
    """Log what the tables hold of a run, and the page of its report, to its run in MLflow; tell where, or why not.

    Nothing that fails here fails the run, which is done. A run of which no stage ended is left out.
    """
    if not settings.tracking.enabled:
        return
    uri = tracking_uri(settings)
    if uri is None:
        console.print(
            f"tracking: off, because a SQLite file needs a local folder (storage.artifacts: {settings.storage.artifacts_root}); "
            "set tracking.uri to MLflow's server (or tracking.enabled=false)"
        )
        return
    try:
        stages = runs_of(tables, run_id)
        if not stages:
            return
        metrics = [*_of_stages(stages), *_of_evaluation(tables, stages), *_of_training(settings, stages)]
        with _quiet():
            _log(uri, settings, run_id, stages, metrics, status=status)
    except Exception as error:  # whatever it is: the run's tables are written
        console.print(
            f"tracking: this run is not logged (tracking.uri {uri}: {_first_line(error)}); its tables are complete. Mend the "
            "server or tracking.uri, or set tracking.enabled=false"
        )
        return
    console.print(f"tracking: MLflow run {run_id} of experiment {settings.tracking.experiment} in {uri}")


def tracking_uri(settings: Settings) -> str | None:
    """MLflow's store: that of the settings, else a SQLite file; None where there is no local folder for one."""
    if settings.tracking.uri:
        return settings.tracking.uri
    folder = _local_folder(settings)
    return f"sqlite:///{folder / 'mlflow.db'}" if folder else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as parameters: ``{"als": {"rank": 32}}`` is ``{"als.rank": "32"}``.

    >>> flatten({"als": {"rank": 32}, "evaluation": {"ks": [10, 20]}, "users": None})
    {'als.rank': '32', 'evaluation.ks': '[10, 20]', 'users': 'None'}
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            found[_name(f"{prefix}{name}")] = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return found


def _of_stages(stages: Sequence[StageRun]) -> Iterator[Metric]:
    for stage in stages:
        yield _metric(f"seconds/{stage.stage}", stage.seconds, stage)


def _of_evaluation(tables: Tables, stages: Sequence[StageRun]) -> Iterator[Metric]:
    """The figures of the run's rows of ``metrics``, pooled where there are several folds; NDCG's with its interval."""
    stage = next((stage for stage in stages if stage.stage == "evaluate"), None)
    if stage is None:
        return
    # A row a model, slice, metric and cut-off.
    rows = tables.read("metrics", run_id=stage.run_id).collect()
    for row in of_one_fold(rows, max((row[C.FOLD] for row in rows), default="")):
        yield from _of_figure(row, stage)


def _of_figure(row: Row, stage: StageRun) -> Iterator[Metric]:
    bounds = (("_low", C.LOW), ("_high", C.HIGH)) if row[C.METRIC] == HEADLINE else ()
    for ending, column in (("", C.VALUE), *bounds):
        if row[column] is not None:
            name = f"{row[C.METRIC]}_at_{row[C.K]}{ending}/{row[C.SLICE]}/{row[C.MODEL]}"
            yield _metric(name, row[column], stage)


def _of_training(settings: Settings, stages: Sequence[StageRun]) -> Iterator[Metric]:
    """Loss and validation of each epoch of the models that the run trained."""
    if settings.sequence.changed_since is not None:
        return
    trained = {stage.stage.removeprefix("train_"): stage for stage in stages}
    artifacts = absolute(settings.storage.artifacts_root)
    for model in (model for model in MODELS if model in trained):
        for fold in read_exported_folds(artifacts):
            progress = load_progress(f"{model_location(artifacts, fold, model)}/checkpoint")
            for epoch in progress.epochs if progress else ():
                for field, name in _EPOCH.items():
                    if (value := getattr(epoch, field)) is not None:
                        yield _metric(f"{name}/{model}/{fold}", value, trained[model], step=epoch.epoch)


def _metric(name: str, value: float, stage: StageRun, step: int = 0) -> Metric:
    ended = stage.started_ts.timestamp() + stage.seconds
    return Metric(name=_name(name), value=float(value), step=step, milliseconds=round(1000 * ended))


def _log(
    uri: str,
    settings: Settings,
    run_id: str,
    stages: Sequence[StageRun],
    metrics: Sequence[Metric],
    *,
    status: str,
) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import entities  # noqa: PLC0415 - seconds
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient(tracking_uri=uri)
    run = _find_or_create(client, settings, run_id, stages)
    mlflow_id, known = run.info.run_id, run.data.params
    parameters = flatten(settings.model_dump(mode="json"))
    tags = _tags(settings, run_id, stages)
    # MLflow's parameters never change; a search goes on with other settings than it began with.
    changed = {name: value for name, value in parameters.items() if known.get(name, value) != value}
    tags |= {f"changed.{name}": f"{known[name]} -> {value}" for name, value in changed.items()}
    new_parameters = [entities.Param(name, value) for name, value in parameters.items() if name not in known]
    for batch in _batches(new_parameters):
        client.log_batch(mlflow_id, params=batch)
    for batch in _batches([entities.RunTag(name, value) for name, value in tags.items()]):
        client.log_batch(mlflow_id, tags=batch)
    points = [entities.Metric(point.name, point.value, point.milliseconds, point.step) for point in metrics]
    for batch in _batches(points, 10 * _BATCH):
        client.log_batch(mlflow_id, metrics=batch)
    client.log_text(mlflow_id, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), "settings.yaml")
    client.log_dict(mlflow_id, {stage.stage: dict(stage.shown) for stage in stages}, "figures.json")
    for stage in stages:
        # Only a local page is there to be logged; one on an object store has an address of its own.
        if stage.stage == "report" and Path(stage.figures["page"]).is_file():
            client.log_artifact(mlflow_id, stage.figures["page"])
    client.set_terminated(mlflow_id, status)


def _find_or_create(client: MlflowClient, settings: Settings, run_id: str, stages: Sequence[StageRun]) -> Any:
    name, folder = settings.tracking.experiment, _local_folder(settings)
    # Beside a SQLite file MLflow would put them into the working directory.
    is_file = (tracking_uri(settings) or "").startswith("sqlite:")
    artifacts = (folder / "mlflow").as_uri() if folder and is_file else None
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, artifacts)
    found = client.search_runs([experiment_id], f"tags.`{RUN_ID_TAG}` = '{run_id}'", max_results=1)
    if found:
        return found[0]
    began = round(1000 * stages[0].started_ts.timestamp())
    return client.create_run(experiment_id, start_time=began, tags={RUN_ID_TAG: run_id}, run_name=run_id)


def _tags(settings: Settings, run_id: str, stages: Sequence[StageRun]) -> dict[str, str]:
    tags = {
        RUN_ID_TAG: run_id,
        "xrec.code_version": code_version(),
        "xrec.settings_hash": settings.digest(),
        "xrec.tables": settings.storage.catalog or settings.storage.tables_root,
    }
    tags |= {f"version.{name}": number for name, number in package_versions().items()}
    for stage in stages:
        tags |= {f"table.{stage.stage}.{name}": str(number) for name, number in stage.outputs.items()}
    return tags


def _local_folder(settings: Settings) -> Path | None:
    artifacts = absolute(settings.storage.artifacts_root)
    return Path(artifacts) if artifacts.startswith("/") else None


def _batches(values: Sequence[Any], size: int = _BATCH) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _name(text: str) -> str:
    """A name with the characters that MLflow allows."""
    return _NOT_IN_NAMES.sub("_", text)


def _first_line(error: Exception) -> str:
    """What went wrong in a line; of a chain of errors the last sentence says it."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow warns of what it uses itself (a loader of SQLAlchemy that is to go)."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield
