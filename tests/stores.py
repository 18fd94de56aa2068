"""Stand-ins for stores of files that a test has no servers of: fsspec knows their schemes once this is imported."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Renaming(LocalFileSystem):
    """A folder as a store that is not local, and renames onto nothing that is there, as HDFS."""

    protocol = "renaming"

    @classmethod
    def url(cls, path: Any) -> str:
        """A local path as one of the store's bucket."""
        return f"{cls.protocol}://bucket{path}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix(cls.url("")))

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(path2)
        super().mv(path1, path2, **kwargs)


fsspec.register_implementation(Renaming.protocol, Renaming, clobber=True)
