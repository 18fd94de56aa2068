"""What a person reads when a run fails."""

from __future__ import annotations

from py4j.protocol import Py4JError

from xrec.runs.stage import describe_error

_TASK = "An error occurred while calling o1.save.\n: org.apache.spark.SparkException: [TASK_WRITE_FAILED] Task failed while "


def test_a_full_disk_is_named_with_its_place_and_what_to_do() -> None:
    cause = "Caused by: java.io.IOException: No space left on device\n\tat java.io.Write"
    message = describe_error(
        Py4JError(f"{_TASK}writing rows to file:/data/wh/events. SQLSTATE: 58030\n\tat a.Run\n{cause}")
    )
    assert message.startswith("no space left on the disk while writing to file:/data/wh/events; free some, or choose ")
    assert "storage.root" in message


def test_another_failure_of_spark_keeps_its_first_lines_and_its_cause() -> None:
    message = describe_error(Py4JError(f"{_TASK}reading\n\tat org.apache.Task.run\nCaused by: java.lang.X: y\n\tat z"))
    assert message.startswith(
        "Spark failed: An error occurred while calling o1.save. | : org.apache.spark.SparkException: "
    )
    assert "Caused by: java.lang.X: y (set XREC_TRACEBACK=1" in message
    assert "org.apache.Task.run" not in message


def test_what_a_task_raised_is_said_without_its_traceback() -> None:
    trace = (
        "Traceback (most recent call last):\n  File x, line 3\nxrec.storage.shared.SharedRowsError: s3://b/x: mend it"
    )
    assert describe_error(Py4JError(f"{_TASK}writing\n\tat a\nCaused by: org.PythonException: {trace}\n\tat z")) == (
        "s3://b/x: mend it"
    )
