"""Runs the notebooks as a person does, in one kernel, whose Spark session takes longer to start than they take to run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from pipeline_runs import ROOT, SHORT_LIVED_JVM

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_SPARK = (
    "--master local[2] --driver-memory 1g --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=2 "
    f"--conf 'spark.driver.extraJavaOptions={SHORT_LIVED_JVM}' pyspark-shell"
)


def run_notebooks(config: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The text that each notebook shows, by its name, on the tables of this config."""
    monkeypatch.setenv("XREC_NOTEBOOK_CONFIG", str(config))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", _SPARK)
    kernel = KernelManager(kernel_name="python3")
    shown = {}
    try:
        for file in NOTEBOOKS:
            book = nbformat.read(file, as_version=4)
            client = NotebookClient(book, km=kernel, timeout=120, resources={"metadata": {"path": str(ROOT)}})
            client.execute(reset_kc=False, cleanup_kc=False)
            shown[file.stem] = _text_of(book)
    finally:
        if kernel.has_kernel:
            kernel.shutdown_kernel(now=True)
    return shown


def _text_of(book: NotebookNode) -> str:
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.data["text/plain"] for output in outputs if output.output_type == "execute_result")
