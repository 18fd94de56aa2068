"""A landing folder: the files that came since the last time, as a delivery of their own, by Spark's structured streaming.

The stream reads names, not content; its checkpoint remembers which files were taken. What is then done with the files is the
same as with any delivery. A batch that was killed comes again under the same delivery id, so it replaces what it had written;
where its files were removed meanwhile, what it had written is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame

from xrec.config import Settings
from xrec.ingest.loading import remove_delivery
from xrec.ingest.reader import listed, naming_platform, reading, resolve_path
from xrec.storage.files import absolute, read_json
from xrec.storage.tables import Tables

_FILES = "path string, modificationTime timestamp, length long, content binary"
_FOR_EVER = "36500d"
"""Spark's default forgets, and passes over, files that are a week older than the newest: late ones would be lost."""


def take_arrivals(tables: Tables, settings: Settings, take: Callable[[Sequence[Settings]], None]) -> None:
    """Call ``take`` with the settings of what is to be loaded: the platforms' files at once, then what has landed for others.

    Of a landing folder a delivery is at most ``log.landing_files`` files of one platform. A delivery that ``take`` fails with
    is not taken: it comes again the next time, without the files that have been removed by then.

    Raises
    ------
    InputError
        A landing folder is not there.
    """
    if at_once := [source for source in settings.sources if not source.log.landing]:
        take(at_once)
    for source in settings.sources:
        if source.log.landing:
            with naming_platform(source), reading(source.log.file):
                _take_landed(tables, source, take)


def _take_landed(tables: Tables, settings: Settings, take: Callable[[Sequence[Settings]], None]) -> None:
    log = settings.log
    checkpoint = f"{settings.storage.artifacts_root}/landing/{log.platform}"
    failures: list[Exception] = []

    def take_batch(batch: DataFrame, number: int) -> None:
        files = tuple(sorted(row["path"] for row in batch.collect()))
        # A lost checkpoint gets another id, so that its first batches do not replace the first ones of this one.
        stream = read_json(absolute(f"{checkpoint}/metadata"))["id"][:8]
        delivery_id = f"{log.delivery_id}-{stream}-{number}"
        if not files:
            remove_delivery(tables, delivery_id)
            return
        file = log.file.model_copy(update={"files": files})
        landed = log.model_copy(update={"file": file, "delivery_id": delivery_id})
        try:
            take([settings.model_copy(update={"log": landed})])
        except Exception as error:
            error.add_note(f"this is about {listed(files, 3)}; mend or remove what is wrong, and run ingest again")
            failures.append(error)
            raise

    reader = tables.spark.readStream.format("binaryFile").schema(_FILES).option("ignoreMissingFiles", "true")
    reader = reader.option("maxFilesPerTrigger", log.landing_files).option("maxFileAge", _FOR_EVER)
    names = reader.load(resolve_path(log.file.path)).select("path")
    writer = names.writeStream.foreachBatch(take_batch).option("checkpointLocation", checkpoint)
    try:
        writer.trigger(availableNow=True).start().awaitTermination()
    except StreamingQueryException:
        if failures:
            raise failures[0] from None
        raise
