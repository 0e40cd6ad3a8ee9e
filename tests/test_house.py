"""The structure of the program: sizes of files, the direction of imports, and what `--help` must not import."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = ("train", "predict", "ssim", "evaluate")
STORY = ("dataset", "modules", "train")  # what a student reads first
BASE = ("brains.config", "brains.cli", "brains.layers", "brains.names", "brains.backend")
ARCHIVES = ("brains.archives", "brains.sources", "brains.volumes")  # how slices come to the machine
FILES = {path.stem: path for path in ROOT.glob("*.py")} | {
    f"brains.{path.stem}": path for path in (ROOT / "brains").glob("*.py") if path.stem != "__init__"
}


def lines_of(path):
    return len(path.read_text().splitlines())


def imports_of(path):
    """Return the modules of this program that a file imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & FILES.keys()


def test_what_a_student_reads_first_is_short():
    assert sum(lines_of(FILES[name]) for name in STORY) <= 900


@pytest.mark.parametrize(
    "path", [*FILES.values(), *(ROOT / "tests").glob("*.py"), ROOT / "images" / "make.py"], ids=str
)
def test_no_file_is_long(path):
    assert lines_of(path) <= 400


@pytest.mark.parametrize("path", [*FILES.values(), *(ROOT / "tests").glob("*.py")], ids=str)
def test_no_line_is_long(path):
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_imports_run_one_way():
    imports = {name: imports_of(path) for name, path in FILES.items()}
    for name, imported in imports.items():
        assert not imported & set(SCRIPTS), f"{name} imports a script"
    for name in BASE:
        assert imports[name] <= set(BASE), name
    for name in ARCHIVES:
        assert imports[name] <= {*BASE, *ARCHIVES}, name
    for name in ("dataset", "modules"):
        assert imports[name] <= {*BASE, *ARCHIVES}, name
    settled = set()
    while settled != imports.keys():  # no circle anywhere
        free = {name for name in imports.keys() - settled if imports[name] <= settled}
        assert free, f"a circle among {sorted(imports.keys() - settled)}"
        settled |= free


def test_only_entry_points_and_the_command_line_know_argparse():
    for name, path in FILES.items():
        if name not in (*SCRIPTS, "dataset", "brains.cli"):
            assert "argparse" not in path.read_text(), name


def test_networks_know_no_flags_or_folders():
    for name in ("modules", "brains.sharp", "brains.layers"):
        text = FILES[name].read_text()
        assert not any(word in text for word in ("--", "Path", "argparse", "UserError")) or name == "modules", name
    tree = ast.parse(FILES["modules"].read_text())
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not any(word.startswith("--") for word in words)


@pytest.mark.parametrize("script", [*SCRIPTS, "dataset"])
def test_help_and_wrong_usage_do_not_wait_for_tensorflow(script):
    code = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print(stop.code, sorted({"tensorflow", "keras", "matplotlib", "sklearn"} & set(sys.modules)))
"""
    for flag, status in (("--help", 0), ("--nonsense", 2)):
        command = [sys.executable, "-c", code, str(FILES[script]), flag]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == f"{status} []", done.stdout + done.stderr
