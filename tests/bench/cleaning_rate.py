"""cleaning_rate: cleaning a log with quarantine, against Spark merely copying the same file to Delta, in one run.

    ./spark-submit.sh tests/bench/cleaning_rate.py
    ./spark-submit.sh tests/bench/cleaning_rate.py --data my_log.csv --config conf/my_shop.yaml

The default log is that of the default settings, written as plain CSV in eight files, with every 200th row written twice.
Copying reads the same text, splits its columns and writes them to Delta. Cleaning is what the stage ingest does with the log:
rows counted, rules, duplicates, contracts checked, events and quarantine written. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from xrec.config import File, Settings, load_settings
from xrec.ingest.loading import Loaded, load
from xrec.ingest.reader import resolve_path
from xrec.session import build_session
from xrec.storage.tables import Tables

_NUM_FILES = 8


def main() -> None:
    """Prepare the text, time both sides in turns, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", metavar="PATH", help="a CSV file or folder (default: the log of the settings, as CSV)"
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="settings; repeatable")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="runs of each side, after one that is not counted"
    )
    arguments = parser.parse_args()
    spark = build_session("xrec cleaning_rate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = load_settings(arguments.config)
        path = arguments.data or str(_as_csv(spark, settings, folder / "log"))
        file = File(path=path, format="csv")
        log = settings.log.model_copy(update={"file": file})
        storage = settings.storage.model_copy(update={"root": str(folder / "tables")})
        settings = settings.model_copy(update={"log": log, "storage": storage})
        num_rows = _read(spark, path).count()
        sides: dict[str, Callable[[], None]] = {
            "copy": lambda: _copy(spark, path, folder / "copy"),
            "clean": lambda: _clean(spark, settings),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(arguments.runs + 1):
            for side, work in sides.items():
                started = time.monotonic()
                work()
                if turn:
                    seconds[side].append(time.monotonic() - started)
            shutil.rmtree(folder / "copy")
            shutil.rmtree(folder / "tables")
    for side, times in seconds.items():
        _report(f"{side}_rate", num_rows / statistics.median(times), "rows/s", None, arguments.runs)
    ratios = [copied / cleaned for copied, cleaned in zip(seconds["copy"], seconds["clean"], strict=True)]
    _report(
        "clean_to_copy_rate", statistics.median(ratios), "ratio", "Spark copying the same text to Delta", len(ratios)
    )


def _as_csv(spark: SparkSession, settings: Settings, folder: Path) -> Path:
    """The settings' log as plain CSV, every 200th row twice."""
    log = settings.log.file
    rows = spark.read.format(log.format).options(**log.options).load(resolve_path(log.path))
    times = F.when(F.xxhash64(*rows.columns) % 200 == 0, F.lit(2)).otherwise(F.lit(1))
    twice = rows.withColumn("copy", F.explode(F.sequence(F.lit(1), times))).drop("copy")
    twice.repartition(_NUM_FILES).write.option("header", "true").csv(str(folder))
    return folder


def _read(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.option("header", "true").csv(path)


def _copy(spark: SparkSession, path: str, target: Path) -> None:
    _read(spark, path).write.format("delta").save(str(target))


def _clean(spark: SparkSession, settings: Settings) -> None:
    load(Tables(spark, settings.storage), [settings], None, Loaded(layouts={}))


def _report(figure: str, value: float, unit: str, against: str | None, n: int) -> None:
    print(
        json.dumps({"figure": figure, "value": round(value, 3), "unit": unit, "against": against, "n": n}), flush=True
    )


if __name__ == "__main__":
    main()
