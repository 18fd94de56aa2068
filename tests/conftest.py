"""One Spark session for each of the two processes that share the test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from pipeline_runs import SHORT_LIVED_JVM
from xrec.session import build_session

_LONGEST_FIRST = ("test_pipeline.py", "test_horovod.py")
"""Files that run whole jobs begin first, so that none of them is left alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; within a file the tests stay as they are."""
    items.sort(key=lambda item: _LONGEST_FIRST.index(item.path.name) if item.path.name in _LONGEST_FIRST else 99)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    folder: Path = tmp_path_factory.mktemp("spark")
    options = {
        "spark.master": "local[2]",
        "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.ui.enabled": "false",
        # Compiling a query takes longer than running it over a few rows; the tests that run whole jobs do compile.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC {SHORT_LIVED_JVM} -Dderby.system.home={folder}",
    }
    session = build_session("xrec-tests", options)
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
