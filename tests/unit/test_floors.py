"""The house's floors, read off the imports: what may import what."""

import ast
from pathlib import Path

import maml_dist

PACKAGE = Path(maml_dist.__file__).parent
ROOMS = ("core", "learners", "tasks", "models", "runtime")
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str | None:
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else None


def test_there_are_files_in_every_room():
    assert {room(path) for path in FILES} >= {None, *ROOMS}


def test_core_imports_torch_and_numpy_only():
    import sys

    for path in FILES:
        if room(path) == "core":
            tops = {name.partition(".")[0] for name in imports(path)}
            assert tops - sys.stdlib_module_names <= {"torch", "numpy", "maml_dist"}, path


def test_rooms_import_core_and_themselves_only():
    for path in FILES:
        if room(path):
            inner = {name.split(".")[1] for name in imports(path) if name.startswith("maml_dist.")}
            assert inner <= {"core", room(path)}, f"{path} imports {inner}"


def test_ray_stands_at_the_edge():
    for path in FILES:
        if any(name.partition(".")[0] == "ray" for name in imports(path)):
            assert room(path) == "runtime" or path.name == "tune.py", path
