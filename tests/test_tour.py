"""The notebook of docs/: it runs from the shipped weights, and its outputs are stored."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"


def figures_of(notebook):
    """Return how many figures each cell of code has put out."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [sum(output.output_type == "display_data" for output in several) for several in outputs]


def test_outputs_are_stored():
    stored = nbformat.read(TOUR, as_version=4)
    assert sum(number > 0 for number in figures_of(stored)) >= 10
    assert not any(output.output_type == "error" for cell in stored.cells for output in cell.get("outputs", ()))


@pytest.mark.long
def test_notebook_runs(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook
    notebook = nbformat.read(TOUR, as_version=4)
    stored = figures_of(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": TOUR.parent}}).execute()
    assert figures_of(notebook) == stored
