"""growth: how the cost of all Spark stages and the memory of the driver grow from 1x over 4x to 16x a real log.

    ./spark-submit.sh tests/bench/growth.py
    ./spark-submit.sh tests/bench/growth.py --sizes 1 4 --share 0.02

1x is a share of the users of the default log (Complete Journey); n-fold has n copies of it with fresh users and fresh items,
so that the distributions stay, and over them one user with 5 % of all rows and one item with 10 %. Each size runs as a
process of its own, training of GRU and Transformer left out (they are not Spark's work), and ends with a list for everybody.

``seconds_exponent`` is the slope of log seconds over log size; fixed costs make it smaller, so the slope from the second to
the last size is beside it. In local mode the driver's JVM does the executors' work too, so the driver's memory is shown as what
is its own: the resident set of its Python process (``driver_memory``), and the bytes that tasks sent to it in the largest job
(``driver_bytes``). The latter are tables that Spark broadcasts of its own accord; they grow with the log until their files
are larger than spark.sql.autoBroadcastJoinThreshold (10 MB), from where on it does not.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from xrec.ingest.reader import resolve_path
from xrec.session import build_session

ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = (
    "ingest judge index fold balance train_als export_sequences candidates "
    "blend train_rankers choose recommend evaluate publish"
)
HEAVY_USER, HEAVY_ITEM = 0.05, 0.10
_ENDS = re.compile(r"^\[\d+/\d+\] (\w+): .* done in ([\d.]+) s$")


def main() -> None:
    """Make the logs, run each size, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="copies of the log")
    parser.add_argument(
        "--share", type=float, default=1 / 16, metavar="P", help="share of the default log's users in 1x"
    )
    parser.add_argument("--config", default=str(ROOT / "conf" / "complete_journey.yaml"), metavar="FILE")
    parser.add_argument("--data", metavar="PATH", help="where the logs are made and run (default: a temporary folder)")
    arguments = parser.parse_args()
    base = yaml.safe_load(Path(arguments.config).read_text())
    folder = Path(arguments.data or tempfile.mkdtemp(prefix="xrec-growth-"))
    spark = build_session("xrec growth")
    rows = {size: _make(spark, base, folder / str(size), size, arguments.share) for size in arguments.sizes}
    spark.stop()  # its memory is the runs' now
    measured = {size: _run(base, folder / str(size)) for size in arguments.sizes}
    if not arguments.data:
        shutil.rmtree(folder)
    first, second, last = arguments.sizes[0], arguments.sizes[1], arguments.sizes[-1]
    for size in arguments.sizes:
        _report(f"seconds_{size}x", sum(measured[size].seconds.values()), "s", f"{rows[size]:,} rows")
    for stage in STAGES:
        _report(f"{stage}_exponent", _slope(measured, first, last, stage), "exponent", f"{first}x to {last}x")
    _report("seconds_exponent", _slope(measured, first, last), "exponent", f"{first}x to {last}x")
    _report("seconds_exponent_large", _slope(measured, second, last), "exponent", f"{second}x to {last}x")
    for name in ("driver_memory", "driver_bytes"):
        low, high = (getattr(measured[size], name) for size in (first, last))
        _report(name, high / 2**20, "MiB", f"at {last}x")
        _report(f"{name}_growth", high / low, "ratio", f"{last}x to {first}x")


class Measured:
    """What one size cost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.driver_memory = 0
        self.driver_bytes = 0


def _make(spark: SparkSession, base: dict, folder: Path, size: int, share: float) -> int:
    """Write the log and catalogue of a size, and its settings; gives the rows of the log."""
    log, catalogue = base["log"], base["catalogue"]
    user, item = log["columns"]["user_id"], log["columns"]["item_id"]
    events = spark.read.parquet(resolve_path(log["file"]["path"]))
    products = spark.read.parquet(resolve_path(catalogue["file"]["path"])).withColumnRenamed(catalogue["item_id"], item)
    text = {user: F.col(user).cast("string"), item: F.col(item).cast("string")}
    chosen = events.where(F.pmod(F.xxhash64(user), F.lit(1000)) < F.lit(round(1000 * share))).withColumns(text)
    products = products.withColumn(item, F.col(item).cast("string"))
    copies = spark.range(size).select(F.col("id").cast("string").alias("copy"))
    fresh = {name: F.concat_ws("-", "copy", name) for name in (user, item)}
    many = chosen.crossJoin(F.broadcast(copies)).withColumns(fresh).drop("copy")
    of_user, of_item = (
        F.pmod(F.xxhash64(F.lit(salt), *many.columns), F.lit(10_000)) < F.lit(round(10_000 * part))
        for salt, part in (("user", HEAVY_USER), ("item", HEAVY_ITEM))
    )
    popular = chosen.groupBy(item).count().orderBy(F.desc("count")).first()
    assert popular is not None
    skewed = many.withColumns(
        {
            user: F.when(of_user, F.lit("heavy")).otherwise(F.col(user)),
            item: F.when(of_item, F.lit(f"0-{popular[0]}")).otherwise(F.col(item)),
        }
    )
    skewed.write.parquet(str(folder / "log"))
    catalogued = products.crossJoin(F.broadcast(copies)).withColumn(item, fresh[item]).drop("copy")
    catalogued.where(F.col(item).isNotNull()).write.parquet(str(folder / "catalogue"))
    settings = {
        **base,
        "storage": {"root": str(folder / "tables")},
        "log": {**log, "file": {"path": str(folder / "log"), "format": "parquet"}},
        "catalogue": {**catalogue, "item_id": item, "file": {"path": str(folder / "catalogue"), "format": "parquet"}},
        "ranking": {**base.get("ranking", {}), "sources": ["popularity", "als"]},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return spark.read.parquet(str(folder / "log")).count()


def _run(base: dict, folder: Path) -> Measured:
    """Run the Spark stages on a size."""
    (folder / "events").mkdir()
    command = [
        "spark-submit",
        "--conf",
        "spark.eventLog.enabled=true",
        "--conf",
        "spark.eventLog.rolling.enabled=false",
    ]
    command += ["--conf", "spark.eventLog.compress=false", "--conf", f"spark.eventLog.dir=file://{folder / 'events'}"]
    command += [str(ROOT / "jobs" / "pipeline.py"), "--config", str(folder / "settings.yaml")]
    for stage in STAGES:
        command += ["--only", stage]
    measured = Measured()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    threading.Thread(target=_watch, args=(process, measured), daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        if ends := _ENDS.match(line.strip()):
            measured.seconds[ends[1]] = float(ends[2])
            print(f"    {folder.name}x {line.strip()}", file=sys.stderr, flush=True)
    if process.wait():
        raise SystemExit(f"the run in {folder} failed with exit code {process.returncode}; its message is above")
    measured.driver_bytes = _largest_job(next((folder / "events").iterdir()))
    return measured


def _watch(process: subprocess.Popen[str], measured: Measured) -> None:
    """The resident set of the driver's Python process, every half second."""
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        for one in tree.children(recursive=True):
            try:
                if any(part.endswith("pipeline.py") for part in one.cmdline()) and "python" in one.name():
                    measured.driver_memory = max(measured.driver_memory, one.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.5)


def _largest_job(event_log: Path) -> int:
    """The most bytes that the tasks of one job's last stage sent to the driver."""
    last_stages, sizes = {}, {}
    for line in event_log.read_text().splitlines():
        event = json.loads(line)
        if event["Event"] == "SparkListenerJobStart":
            last_stages[event["Job ID"]] = max(event["Stage IDs"], default=-1)
        if event["Event"] == "SparkListenerTaskEnd" and event.get("Task Metrics"):
            stage = event["Stage ID"]
            sizes[stage] = sizes.get(stage, 0) + event["Task Metrics"]["Result Size"]
    return max(sizes.get(stage, 0) for stage in last_stages.values())


def _slope(measured: dict[int, Measured], low: int, high: int, stage: str | None = None) -> float:
    seconds = [
        sum(measured[size].seconds.values()) if stage is None else measured[size].seconds[stage] for size in (low, high)
    ]
    return math.log(seconds[1] / seconds[0]) / math.log(high / low)


def _report(figure: str, value: float, unit: str, against: str) -> None:
    print(
        json.dumps({"figure": figure, "value": round(value, 3), "unit": unit, "against": against, "n": 1}), flush=True
    )


if __name__ == "__main__":
    main()
