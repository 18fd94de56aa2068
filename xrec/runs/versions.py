"""What code a run ran with."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xrec

PACKAGES = ("pyspark", "delta-spark", "torch", "horovod")


def code_version() -> str:
    """The commit of the checkout that runs, marked where files differ from it; else the version of the package."""
    root = Path(xrec.__file__).resolve().parents[1]
    command = ["git", f"--git-dir={root}/.git", f"--work-tree={root}", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return xrec.__version__
    return found.stdout.strip() if found.returncode == 0 else xrec.__version__


def package_versions() -> dict[str, str]:
    """The versions of the packages that figures depend on most; one that is not installed is left out."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
