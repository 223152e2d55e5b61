"""The floors of docs/architecture.md, read off the imports of every file."""

import ast
import sys
from functools import cache
from pathlib import Path

import maml_dist

PACKAGE = Path(maml_dist.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = ("train", "evaluate", "tune", "report", "data")
GROUND = "core"  # files at the top of core/

# A room -> the rooms that it may import, besides itself. The ground floor comes last.
ABOVE_CORE = ("core.compile", "core.data", "core.model", "core.adaptation", "core.outer")
CORE = (GROUND, *ABOVE_CORE, "core.engine", "core.rl")
FIRST = ("learners", "tasks", "tasks.images", "tasks.mujoco", "models", "runtime", "loggers")
BELOW_RUNS = ("config", *FIRST, *CORE)
MAY_IMPORT = {
    "reporting": ("tuning", "training", "inference", "runs", "preflight", *BELOW_RUNS),
    "tuning": ("training", "inference", "runs", "preflight", *BELOW_RUNS),
    "training": ("inference", "runs", "preflight", *BELOW_RUNS),
    "inference": ("runs", "preflight", *BELOW_RUNS),
    "preflight": BELOW_RUNS,
    "runs": BELOW_RUNS,
    "config": (*FIRST, *CORE),
    "runtime": ("loggers", *CORE),
    "loggers": (),
    "tasks.images": ("tasks", *CORE),
    "tasks.mujoco": ("tasks", *CORE),
    "tasks": CORE,
    "learners": CORE,
    "models": CORE,
    "core.engine": ("core.adaptation", "core.model", "core.data", "core.compile", GROUND),
    "core.rl": ("core.adaptation", "core.model", "core.data", GROUND),
    "core.adaptation": ("core.data", GROUND),
    "core.model": ("core.data", GROUND),
    "core.data": (GROUND,),
    "core.outer": (GROUND,),
    "core.compile": (GROUND,),
    GROUND: (),
}


def module(path: Path) -> str:
    """The module's name, without the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def room(name: str) -> str:
    """The room of a module of the package; of those at its top their own name."""
    path = MODULES[name]
    inside = path.relative_to(PACKAGE).parts[:-1]
    return ".".join(inside) if inside else name


@cache
def imports(path: Path) -> dict[str, bool]:
    """What a file imports, and whether inside a function."""
    found: dict[str, bool] = {}

    def walk(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.update({alias.name: inside for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update({f"{node.module}.{alias.name}": inside for alias in node.names})
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(path.read_text()), False)
    return found


def own(path: Path) -> dict[str, bool]:
    """The modules of the package that a file imports, and whether inside a function."""
    found = {}
    for name, inside in imports(path).items():
        if name.partition(".")[0] == "maml_dist":
            parts = name.split(".")[1:]
            while ".".join(parts) not in MODULES:
                parts.pop()
            found[".".join(parts)] = inside
    return found


def test_every_room_is_on_the_plan():
    rooms = {room(name) for name in MODULES}
    assert rooms == {*MAY_IMPORT, *COMMANDS, "cli", ""}


def test_imports_run_downward():
    for name, path in MODULES.items():
        here = room(name)
        for other in own(path):
            there = room(other)
            if here in (*COMMANDS, ""):
                assert there not in COMMANDS, f"{name} imports the command {other}"
            elif here == "cli":  # --help is quick
                quick = other == "core.users_line" or (there == "loggers" and not MAY_IMPORT[there])
                assert quick, f"cli imports {other}"
            else:
                assert there in {here, *MAY_IMPORT[here]}, f"{name} imports {other}"


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " imports ".join((*path, name))
        if name not in done:
            for other in own(MODULES[name]):
                if other != name:
                    visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_own_imports_stand_at_the_top_but_in_commands_and_the_lazy_face():
    for name, path in MODULES.items():
        if name not in (*COMMANDS, ""):
            assert not [other for other, inside in own(path).items() if inside], name


def test_core_imports_torch_and_numpy_only():
    for name, path in MODULES.items():
        if room(name).partition(".")[0] == "core":
            tops = {each.partition(".")[0] for each in imports(path)}
            assert tops - sys.stdlib_module_names <= {"torch", "numpy", "maml_dist"}, path


def test_ray_stands_at_the_edge():
    for name, path in MODULES.items():
        if any(each.partition(".")[0] == "ray" for each in imports(path)):
            assert room(name) in ("runtime", "tuning"), path
