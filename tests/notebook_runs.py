"""Runs the notebooks as a person does, in one kernel, whose Spark session takes longer to start than they take to run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
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
    books = {file.stem: nbformat.read(file, as_version=4) for file in NOTEBOOKS}
    # One after the other in one kernel; the cells, and so their outputs, stay those of the books.
    all_of_them = nbformat.v4.new_notebook(cells=[cell for book in books.values() for cell in book.cells])
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(all_of_them, kernel_name="python3", timeout=300, resources=resources).execute()
    return {name: _text_of(book) for name, book in books.items()}


def _text_of(book: NotebookNode) -> str:
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.data["text/plain"] for output in outputs if output.output_type == "execute_result")
