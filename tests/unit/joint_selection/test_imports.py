"""No module of the stage imports one that imports it."""

import ast
import graphlib
from pathlib import Path

import components.joint_selection

FOLDER = Path(components.joint_selection.__file__).parent
PACKAGE = "components.joint_selection"


def imported(path):
    """Modules of the stage that a file imports anywhere, also where only types need them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_imports_run_in_one_direction():
    paths = {
        ".".join([PACKAGE, *path.relative_to(FOLDER).with_suffix("").parts]): path for path in FOLDER.rglob("*.py")
    }
    graph = {name: imported(path) & paths.keys() for name, path in paths.items()}
    assert f"{PACKAGE}.report.page" in graph[f"{PACKAGE}.stage"]
    # Raises CycleError, which names the circle.
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(paths)
