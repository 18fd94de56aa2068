"""What rank 0 says, in a file that the driver follows.

Under Spark, Horovod hands a rank's output over only when the rank has ended (or has written 64 kB), and a training of hours
would show nothing. A file that all ranks and the driver see is what the checkpoints need anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from xrec.storage.files import FilesError, read_json, write_json

_POLL_SECONDS = 0.5


class Journal:
    """A list of lines in a JSON file, written whole each time: a reader never finds half a line."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)
        write_json(self.location, self._lines)


class Following:
    """Says each line of a journal once, as it appears; what an earlier run left there is dropped at the start."""

    def __init__(self, location: str, say: Callable[[str], None]) -> None:
        self._location = location
        self._say = say
        self._said = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True, name="journal")

    def __enter__(self) -> Following:
        write_json(self._location, [])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._catch_up()

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            lines = read_json(self._location)
        except FilesError:  # between two versions of it: see write_bytes
            return
        for line in lines[self._said :]:
            self._say(line)
        self._said = max(self._said, len(lines))
