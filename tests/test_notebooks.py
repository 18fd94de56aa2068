"""The notebooks as they are committed: no output, no logic. tests/test_pipeline.py runs them."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from pyspark.sql import SparkSession

from notebook_runs import NOTEBOOKS
from pipeline_runs import ROOT
from xrec.runs.notebook import open_run

LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.Try, ast.If)


def test_there_are_notebooks() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["balancing", "compare_models", "explore_log", "recommendations"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_has_no_output_and_no_logic(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert cells[0].metadata.tags == ["parameters"]
    assert "XREC_NOTEBOOK_CONFIG" in cells[0].source
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
        found = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, LOGIC)]
        assert not found, ast.unparse(found[0])


@pytest.mark.spark
def test_a_run_is_opened_from_any_folder(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = open_run("conf/complete_journey.yaml", ["als.rank=7"])
    assert Path.cwd() == ROOT
    assert (run.spark, run.settings.als.rank) == (spark, 7)
