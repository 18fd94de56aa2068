"""One way to build the Spark session: local, standalone, YARN or Databricks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from pyspark.sql import SparkSession

_ALWAYS = {
    # Times are UTC everywhere, whatever the machine's zone.
    "spark.sql.session.timeZone": "UTC",
    # Parquet files by pandas hold nanoseconds; Spark reads them as integers (log.time.unit: ns) or not at all.
    "spark.sql.legacy.parquet.nanosAsLong": "true",
    # What a folder's name says is a text, like all that is read: category=0042 is not 42.
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    # A reader of the export must see whole files: no deletion vectors.
    "spark.databricks.delta.properties.defaults.enableDeletionVectors": "false",
    # Rows that were brought together by user stay so when they are joined by user and item.
    "spark.sql.requireAllClusterKeysForCoPartition": "false",
    # What is kept stays in as many partitions as it was shuffled to: few small ones would be few tasks of much work.
    "spark.sql.optimizer.canChangeCachedPlanOutputPartitioning": "false",
}

_AT_START = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Python workers start with what tasks import: a second less each.
    "spark.python.daemon.module": "xrec.daemon",
}


def build_session(app_name: str, options: Mapping[str, str] | None = None) -> SparkSession:
    """Return the running session, or a new one with Delta; sizes come from spark-submit and spark-defaults.conf.

    ``options`` are further Spark settings of a new session, for tests and notebooks. The process gets the zone UTC: Spark's
    session zone does not hold for the times that are collected, which come in the process's own.
    """
    os.environ["TZ"] = "UTC"
    time.tzset()
    builder = SparkSession.builder.appName(app_name)
    if SparkSession.getActiveSession() is None:
        for key, value in {**_AT_START, **(options or {})}.items():
            builder = builder.config(key, value)
    spark = builder.getOrCreate()
    for key, value in _ALWAYS.items():
        spark.conf.set(key, value)
    return spark
