"""What Spark starts in place of its own Python daemon (``spark.python.daemon.module``), with what tasks import already there.

Spark forks a Python worker from it for each task that runs at the same time, and ends those that are idle for a minute. A worker
that begins with numpy, pyarrow, scipy and what is compiled (the top-K kernel, the sums over neighbours) has a second less to do, on
every core.
"""

from __future__ import annotations

import gc

import pyspark.daemon

import xrec.generators.compiled
import xrec.generators.neighbours  # noqa: F401

if __name__ == "__main__":
    gc.freeze()  # a collection in a worker would copy the pages that it shares with the daemon
    pyspark.daemon.manager()  # type: ignore[no-untyped-call]
