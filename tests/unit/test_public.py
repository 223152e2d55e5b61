"""The public face: what `import maml_dist` gives, and what it does not import for it."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import maml_dist
from maml_dist.config.names import PUBLIC

FACE = Path(maml_dist.__file__)


def test_no_module_hides_a_public_name():
    names = {module.name for module in pkgutil.iter_modules(maml_dist.__path__)}
    assert not names & set(maml_dist.__all__)
    for name in names:
        importlib.import_module(f"maml_dist.{name}")
    assert callable(maml_dist.load) and callable(maml_dist.meta_train)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_imports(name):
    there = getattr(maml_dist, name)
    module, _, attribute = PUBLIC[name].rpartition(".")
    assert there is vars(importlib.import_module(module))[attribute]
    assert getattr(there, "__module__", module) in (module, "collections.abc", "builtins")
    assert name in dir(maml_dist)


def test_no_other_name_does():
    with pytest.raises(AttributeError, match="'maml_dist' has no attribute 'MALM'"):
        maml_dist.MALM  # noqa: B018  # looked up


def test_editors_are_told_the_same_names():
    told = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for block in ast.parse(FACE.read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == PUBLIC and sorted(PUBLIC) == sorted(maml_dist.__all__)


def test_the_import_is_light():
    code = "import maml_dist, sys; print({'torch', 'ray', 'numpy', 'yaml'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
