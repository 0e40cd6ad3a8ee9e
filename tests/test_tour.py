"""The notebook of docs/: it runs from the shipped weights, and its outputs are stored."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs_of(notebook):
    """Return the kinds of output of each cell of code."""
    return [[output.output_type for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_stored():
    stored = outputs_of(nbformat.read(TOUR, as_version=4))
    assert sum("display_data" in kinds for kinds in stored) >= 10
    assert not any("error" in kinds for kinds in stored)


@pytest.mark.long
def test_notebook_runs(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook
    notebook = nbformat.read(TOUR, as_version=4)
    stored = outputs_of(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": TOUR.parent}}).execute()
    assert outputs_of(notebook) == stored
