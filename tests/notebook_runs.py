"""Runs the notebooks as a person does, in one kernel, whose Spark session takes longer to start than they take to run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from pipeline_runs import ROOT, SHORT_LIVED_JVM

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_OPTIONS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    # Compiling a query takes longer than running it over a few rows.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC {SHORT_LIVED_JVM}",
}


def run_notebooks(config: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The text that each notebook shows, by its name, on the tables of this config."""
    monkeypatch.setenv("XREC_NOTEBOOK_CONFIG", str(config))
    options = " ".join(f"--conf '{key}={value}'" for key, value in _OPTIONS.items())
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", f"--master local[2] --driver-memory 1g {options} pyspark-shell")
    books = {file.stem: nbformat.read(file, as_version=4) for file in NOTEBOOKS}
    # Each begins in its own folder, as Jupyter starts it, and without the names of the one before.
    begins = [f"%cd -q {ROOT / 'notebooks'}", "%reset -f"]
    cells = [cell for book in books.values() for cell in [*map(new_code_cell, begins), *book.cells]]
    cells.append(new_code_cell("run.spark.stop()"))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    NotebookClient(new_notebook(cells=cells), timeout=120).execute()
    return {name: _text_of(book) for name, book in books.items()}


def _text_of(book: NotebookNode) -> str:
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.data["text/plain"] for output in outputs if output.output_type == "execute_result")
