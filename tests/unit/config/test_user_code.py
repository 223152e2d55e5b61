"""Modules of one's own: by their path, each folder for itself, found again by pickle."""

import pickle
import shutil
import subprocess
import sys
from typing import get_type_hints

import pytest
import torch
import yaml

import maml_dist
from maml_dist import train
from maml_dist.cli import guarded
from maml_dist.config.compose import build, compose
from maml_dist.config.user_code import Sources, folder_of, package, spelled
from maml_dist.runs.run import Run

SMALL = {"iterations": 2, "engine.running": "eager", "local": True, "progress": False}
SMALL |= {"validation_tasks": 2, "test_tasks": 2, "test_steps": 1}

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.{function}(self.hidden(x)))
"""


def project(folder, files, *, model="net.Net", **changes):
    """A folder with these files and a recipe of the model."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    recipe = {**compose("sinusoid"), "model": model, **changes}
    (folder / "exp.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "exp.yaml"


def test_a_folders_name_is_an_identifier_and_leads_back(tmp_path):
    folder = tmp_path / "my-pröject 2_"
    name = package(folder)
    assert name.rpartition(".")[2].isidentifier() and folder_of(f"{name}.net") == folder
    assert spelled(f"<class '{name}.net.Net'>") == "<class 'net.Net'>"
    assert (
        folder_of("maml_dist.config.user_code") is None and folder_of("maml_dist.runs.run") is None
    )


def test_two_experiments_with_files_of_one_name_each_get_their_own(tmp_path, monkeypatch):
    """Trained, loaded in turn, and with a third file of that name in the working directory."""
    (tmp_path / "net.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    x, runs = torch.linspace(-1, 1, 5)[:, None], {}
    for name in ("sin", "tanh"):
        recipe = project(tmp_path / name, {"net.py": NET.format(function=name)})
        runs[name] = maml_dist.meta_train(recipe, run=tmp_path / name / "run", **SMALL)
    for name in ("sin", "tanh", "sin"):
        model = maml_dist.load(runs[name].path)
        h = getattr(torch, name)(x @ model.hidden.weight.T + model.hidden.bias)
        torch.testing.assert_close(model(x), h @ model.head.weight.T + model.head.bias)
        assert Run.open(runs[name].path).config["model"]["class_path"] == "net.Net"
    assert sys.modules.get("net") is None


def test_the_second_may_be_given_by_the_packages_class_names(tmp_path):
    """Though the first has classes of these names."""
    files = {"net.py": "from maml_dist.models.mlp import MLP as Base\nclass MLP(Base): ...\n"}
    first = build(compose(project(tmp_path, files, model={"class_path": "net.MLP"})))
    second = build(compose("sinusoid", {"model": "MLP"}))
    assert type(first.model) is not type(second.model)
    assert type(second.model).__module__ == "maml_dist.models.mlp"


@pytest.mark.parametrize("name", ["random", "torch", "numpy", "yaml", "data", "maml_dist"])
def test_a_file_that_is_named_as_an_installed_module_breaks_nothing(tmp_path, name):
    files = {"net.py": "import random, numpy, maml_dist\n" + NET.format(function="sin")}
    files[f"{name}.py"] = "raise RuntimeError('not this one')" if name != "data" else "SIZE = 3"
    if name == "data":
        files["net.py"] += "        \nfrom data import SIZE\n"
    experiment = build(compose(project(tmp_path, files)))
    assert type(experiment.model).__name__ == "Net"


def test_and_its_classes_can_be_named(tmp_path):
    recipe = project(tmp_path, {"random.py": NET.format(function="sin")}, model="random.Net")
    assert hasattr(build(compose(recipe)).model, "hidden")
    import random

    assert random.random


SIBLINGS = {
    "net.py": """
from __future__ import annotations

import blocks
import blocks as other
import parts.deep.inner
from blocks import *
from blocks import Block as Renamed, WIDTH
from dataclasses import dataclass
from loose.piece import PIECE
from parts import Part, deep
from torch import nn


@dataclass
class Sizes:
    width: Width = 4


class Net(nn.Sequential):
    def __init__(self, sizes: Sizes = Sizes(), body: blocks.Block | None = None):
        import late
        from parts.deep import inner

        super().__init__(blocks.Block(sizes.width), Renamed(WIDTH), Part(), late.Late())
        assert other is blocks and parts.deep.inner is inner is deep.inner and PIECE == 5
        self.body = body

    def forward(self, x):
        from late import scale

        return scale * super().forward(x)
""",
    "blocks.py": """
import net  # which imports this
from torch import nn

Width = int
WIDTH = 2


class Block(nn.Identity):
    def __init__(self, width: int = 1):
        super().__init__()
        self.width = width
""",
    "late.py": """
import torch

scale = 3.0


class Late(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
""",
    "parts/__init__.py": "from .part import Part\n",
    "parts/part.py": "from torch.nn import Identity\nfrom .deep.inner import ONE\n"
    "import blocks\n\nclass Part(Identity): ...\n",
    "parts/deep/__init__.py": "",
    "parts/deep/inner.py": "from ..deep import inner\nfrom blocks import Block\nONE = 1\n",
    "loose/piece.py": "PIECE = 5\n",
}


def test_what_lies_beside_a_module_is_imported_as_ever(tmp_path):
    recipe = project(tmp_path, SIBLINGS)
    config = compose(recipe, {"model.sizes.width": 7, "model.body": "blocks.Block"})
    model = build(config).model
    assert (model[0].width, model[1].width, model.body.width) == (7, 2, 1)
    x = torch.ones(3, 1)
    torch.testing.assert_close(model(x), 3 * model[3](x))
    assert config["model"]["init_args"]["body"]["class_path"] == "blocks.Block"
    kind = type(model)
    hints = get_type_hints(kind.__init__)
    assert get_type_hints(hints["sizes"])["width"] is int
    assert not {"net", "blocks", "parts", "late", "loose"} & set(sys.modules)
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_run_of_them_is_trained_resumed_and_evaluated(tmp_path):
    run = maml_dist.meta_train(project(tmp_path, SIBLINGS), run=tmp_path / "run", **SMALL)
    again = maml_dist.meta_train(
        resume=run.path, iterations=3, local=True, progress=False, trust=tmp_path
    )
    assert again.finished and maml_dist.meta_test(again)["metric"]


def test_a_folder_that_the_recipe_names_is_beside_it_too(tmp_path):
    files = {"net.py": "from shared import Shared\nclass Net(Shared): ...\n"}
    recipe = project(tmp_path / "exp", files, code=["../lib"])
    project(tmp_path / "lib", {"shared.py": NET.format(function="sin").replace("Net", "Shared")})
    config = compose(recipe)
    assert config["code"] == [str(tmp_path / "exp"), str(tmp_path / "lib")]
    assert hasattr(build(config).model, "hidden")


LOADS = """
import pickle, sys, torch
net = pickle.load(open("net.pickle", "rb"))
assert type(net).__module__.endswith(".net"), type(net)
assert torch.equal(net(torch.ones(3, 1)), torch.load("out.pt"))
same = torch.load("net.pt", weights_only=False)
assert torch.equal(same(torch.ones(3, 1)), torch.load("out.pt"))
"""


def in_another_process(folder, code):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_pickle_finds_the_class_here_and_in_another_process(tmp_path):
    model = build(compose(project(tmp_path / "mine", SIBLINGS))).model
    copy = pickle.loads(pickle.dumps(model))
    assert type(copy) is type(model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "net.pickle").write_bytes(pickle.dumps(model))
    torch.save(model, tmp_path / "other" / "net.pt")
    torch.save(model(torch.ones(3, 1)), tmp_path / "other" / "out.pt")
    done = in_another_process(tmp_path / "other", LOADS)
    assert done.returncode == 0, done.stderr


def test_on_a_machine_without_the_files_what_is_sent_is_enough(tmp_path):
    model = build(compose(project(tmp_path / "mine", SIBLINGS))).model
    (tmp_path / "other").mkdir()
    torch.save(model(torch.ones(3, 1)), tmp_path / "other" / "out.pt")
    (tmp_path / "other" / "net.pickle").write_bytes(pickle.dumps((Sources(), model)))
    shutil.rmtree(tmp_path / "mine")
    code = LOADS.replace("net = pickle", "_, net = pickle").partition("same =")[0]
    done = in_another_process(tmp_path / "other", code)
    assert done.returncode == 0, done.stderr


RAISES = {
    "1 / 0": "ZeroDivisionError: division by zero",
    "{}['legs']": "KeyError: 'legs'",
    "raise SystemExit(0)": "SystemExit: 0",
    "import sys; sys.exit()": "SystemExit",
    "import nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'",
    "raise ValueError('bad')": "ValueError: bad",
    "open('nowhere')": "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'",
    "assert not 1": "AssertionError",
    "None.legs": "AttributeError: 'NoneType' object has no attribute 'legs'",
}
WHERE = [(raises, where) for raises in RAISES for where in ("import", "constructor")]
WHERE += [("1 / 0", "sibling"), ("raise SystemExit(0)", "sibling"), ("1 / 0", "its function")]


@pytest.mark.parametrize(("raises", "where"), WHERE)
def test_what_ones_own_module_raises_is_one_line_with_file_and_line(
    tmp_path, monkeypatch, capsys, raises, where
):
    net, blocks, line = NET.format(function="sin"), "def made(): ...\n", 1
    file = "net.py" if where in ("import", "constructor") else "blocks.py"
    if where == "import":
        net = f"{raises}\n{net}"
    elif where == "sibling":
        net, blocks = f"import blocks\n{net}", f"{raises}\n"
    elif where == "constructor":
        net, line = net.replace("        super()", f"        {raises}\n        super()"), 8
    else:
        net = net.replace("        super()", "        __import__('blocks').made()\n        super()")
        blocks, line = f"def made():\n    {raises}\n", 2
    project(tmp_path, {"net.py": net, "blocks.py": blocks})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["train", "exp.yaml", "--local"])
    assert guarded(train.main) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert f"{tmp_path / file}, line {line}: {RAISES[raises]}" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_broken_syntax_too(tmp_path):
    recipe = project(tmp_path, {"net.py": "import torch\n\nclass Net(:\n"})
    with pytest.raises(ValueError, match=f"{tmp_path / 'net.py'}, line 3: SyntaxError: "):
        compose(recipe)
    (tmp_path / "net.py").write_text("x = 'a\0b'\n")
    with pytest.raises(ValueError, match="net.py.*SyntaxError|SyntaxError.*null bytes"):
        compose(recipe)


def test_an_interruption_passes(tmp_path):
    recipe = project(tmp_path, {"net.py": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        compose(recipe)


def test_a_class_that_is_not_there_is_one_line(tmp_path):
    recipe = project(tmp_path, {"net.py": NET.format(function="sin")}, model="net.Nett")
    with pytest.raises(
        ValueError, match="module 'net' has no attribute 'Nett'; did you mean 'Net'"
    ):
        compose(recipe)


def test_what_is_printed_has_the_users_own_spelling(tmp_path, monkeypatch, capsys):
    project(tmp_path, {"net.py": NET.format(function="sin")})
    monkeypatch.chdir(tmp_path)
    assert train.main(["exp.yaml", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "class_path: net.Net" in out and "user_code" not in out
    with pytest.raises(ValueError, match="unknown key 'model.width'") as caught:
        compose("exp.yaml", {"model": {"class_path": "net.Net", "init_args": {"width": 1}}})
    assert "user_code" not in str(caught.value)
