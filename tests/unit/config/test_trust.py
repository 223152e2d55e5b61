"""A stranger's run or recipe executes nothing: whatever opens it, no marker file appears."""

import os
import pickle
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import yaml

import maml_dist
from maml_dist import evaluate, report, train, tune
from maml_dist.cli import guarded
from maml_dist.config import trust
from maml_dist.config.compose import build, compose
from maml_dist.runs.run import Run

SMALL = {"iterations": 0, "engine.running": "eager", "local": True, "progress": False}
SMALL |= {"validation_tasks": 2, "test_tasks": 2, "test_steps": 1}

EVIL = """
import gymnasium, torch
from maml_dist.learners.maml import MAML

def mark():
    open({mark!r}, "w").close()

mark()
gymnasium.register("Evil-v0", entry_point="evil:World")

class World(gymnasium.Env):
    def __init__(self, **settings):
        mark()

class Net(torch.nn.Linear):
    def __init__(self):
        mark()
        super().__init__(1, 1)

class Learner(MAML):
    pass

def make() -> torch.nn.Module:
    return Net()
"""


class Marks:
    """Unpickled, makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture(autouse=True)
def nobodys(monkeypatch):
    """Nothing is trusted yet."""
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.setattr(trust, "_given", [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return maml_dist.meta_train("sinusoid", run=tmp_path_factory.mktemp("honest") / "run", **SMALL)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def strangers(tmp_path, monkeypatch, mark, trained):
    """Makes a stranger's run in `theirs/run`; modules of theirs lie in and beside it."""
    run = tmp_path / "theirs" / "run"
    run.mkdir(parents=True)
    shutil.copytree(trained.path / "checkpoints", run / "checkpoints")
    source = EVIL.format(mark=str(mark))
    for folder in (run, run.parent):
        (folder / "evil.py").write_text(source)
    (tmp_path / "link").symlink_to(run)
    (run / "evil.pt").write_bytes(pickle.dumps(Marks(str(mark))))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def make(**changes):
        config = {**trained.config, **changes}
        (run / "recipe.yaml").write_text(yaml.safe_dump(config))
        return run

    return make


def env(name, **settings):
    return {
        "task": {
            "class_path": "GymTasks",
            "init_args": {"env": name, "settings": settings, "horizon": 2},
        },
        "model": {
            "class_path": "GaussianPolicy",
            "init_args": {"obs_dim": 2, "action_dim": 2},
        },
    }


def linear(**arguments):
    sizes = {"in_features": 1, "out_features": 1}
    return {"model": {"class_path": "torch.nn.Linear", "init_args": {**sizes, **arguments}}}


def spec(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def popen(mark):
    return spec("subprocess.Popen", args=["touch", str(mark)])


WAYS = {
    "evaluate": lambda run, clean: (evaluate, [run]),
    "report": lambda run, clean: (report, [run]),
    "compare": lambda run, clean: (report, [clean, "--compare", run]),
    "resume": lambda run, clean: (train, ["--resume", run, "--local"]),
    "init": lambda run, clean: (train, ["sinusoid", f"init={run}", "--local"]),
    "train": lambda run, clean: (train, [f"{run}/recipe.yaml", "--local"]),
}


def opened(way, run, clean, monkeypatch, capsys):
    """The one line with which a command refuses."""
    module, words = WAYS[way](str(run), str(clean))
    monkeypatch.setattr(sys, "argv", ["command", *words])
    assert guarded(module.main) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# What a run of a stranger's may try: changes to its recipe, and what is said.
MODULES = {
    "code": (lambda run: {"code": [str(run)], "model": "evil.Net"}, "--trust"),
    "code beside": (lambda run: {"code": [str(run.parent)], "model": "evil.Net"}, "--trust"),
    "up": (lambda run: {"code": [f"{run}/../run/.."], "model": "evil.Net"}, "--trust"),
    "relative": (lambda run: {"code": ["../theirs"], "model": spec("evil.Net")}, "--trust"),
    "link": (lambda run: {"code": [str(run.parents[1] / "link")], "model": "evil.Net"}, "--trust"),
    "no code": (lambda run: {"model": "evil.Net"}, "No module named 'evil'"),
    "learner": (lambda run: {"code": [str(run)], "learner": spec("evil.Learner")}, "--trust"),
    "function": (lambda run: {"code": [str(run)], "model": "evil.make"}, "--trust"),
    "text": (lambda run: {"code": [str(run)], "model": "{class_path: evil.Net}"}, "--trust"),
    "argument": (lambda run: {"code": [str(run)], **linear(device=spec("evil.Net"))}, "--trust"),
    "world": (lambda run: {"code": [str(run)], **env("evil.World")}, "--trust"),
    "world:": (lambda run: {"code": [str(run)], **env("evil:World")}, "--trust"),
    "registers": (lambda run: {"code": [str(run)], **env("evil:Evil-v0")}, "--trust"),
    "other world": (lambda run: env("evil:World"), "No module named 'evil'"),
}
INSTALLED = {
    "Popen": (lambda mark: env("subprocess:Popen", args=["touch", mark]), "no gymnasium.Env"),
    "popen.": (lambda mark: env("subprocess.Popen", args=["touch", mark]), "no gymnasium.Env"),
    "system": (lambda mark: env("os:system", command=f"touch {mark}"), "no gymnasium.Env"),
    "mkdir": (lambda mark: env("os:mkdir", path=mark), "no gymnasium.Env"),
    "wrapper": (lambda mark: env("CartPole-v1", anything=popen(mark)), "subprocess.Popen"),
    "not loaded": (lambda mark: env("antigravity:fly"), "No module named 'antigravity'"),
    "tests": (
        lambda mark: env("ray.rllib.examples.envs.classes.env_with_subprocess.EnvWithSubprocess"),
        "No module named 'ray",
    ),
    "command": (lambda mark: {"model": spec("PIL.__main__.Net")}, "has no attribute '__main__'"),
    "gym": (lambda mark: env("GymV26Environment-v0", env_id="evil:Evil-v0"), "whatever module"),
    "any": (lambda mark: linear(device=popen(mark)), "subprocess.Popen"),
    "any text": (lambda mark: linear(device=yaml.safe_dump(popen(mark))), "subprocess.Popen"),
    "twice text": (
        lambda mark: linear(device=yaml.safe_dump(yaml.safe_dump(popen(mark)))),
        "",
    ),
    "load": (
        lambda mark: linear(device=spec("torch.load", f="evil.pt", weights_only=False)),
        "torch.serialization.load is refused",
    ),
    "function": (lambda mark: {"model": spec("torch.hub.load", repo_or_dir=mark)}, "torch.hub"),
    "ours": (
        lambda mark: {"model": spec("maml_dist.inference.load.load", run=mark)},
        "is refused",
    ),
    "our file": (
        lambda mark: {
            "model": spec(
                "torch.nn.ParameterList",
                values=[spec("maml_dist.runs.metrics.Metrics", folder=mark, start=0, total=1)],
            )
        },
        "maml_dist.runs.metrics.Metrics is refused",
    ),
    "os": (lambda mark: {"model": spec("os.mkdir", path=mark)}, "os.mkdir is refused"),
    "hop": (lambda mark: {"learner": spec("torch.os.mkdir", path=mark)}, "is refused"),
}


def each(attacks, ways, thoroughly):
    """Every attack in some ways, some attacks in all ways: they share what opens a run."""
    return [(a, way) for a in attacks for way in (thoroughly.get(a, ways))]


@pytest.mark.parametrize(
    ("attack", "way"), each(MODULES, ["evaluate"], dict.fromkeys(["code", "world:"], WAYS))
)
def test_a_strangers_modules(strangers, trained, mark, monkeypatch, capsys, attack, way):
    changes, said = MODULES[attack]
    run = mark.parent / "theirs" / "run"
    if attack == "relative":
        monkeypatch.chdir(run)
    run = strangers(**changes(run))
    before = sorted(mark.parent.rglob("*"))
    assert said in opened(way, run, trained.path, monkeypatch, capsys)
    assert sorted(mark.parent.rglob("*")) == before
    with pytest.raises(ValueError):
        maml_dist.load(run)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("attack", "way"),
    [
        *each(INSTALLED, ["evaluate"], dict.fromkeys(["Popen", "any"], WAYS)),
        *(
            pytest.param(attack, "train", marks=pytest.mark.slow)
            for attack in INSTALLED
            if attack not in ("Popen", "any")
        ),
    ],
)
def test_what_is_installed_is_called_only_if_it_is_of_the_kind(
    strangers, trained, mark, monkeypatch, capsys, attack, way
):
    changes, said = INSTALLED[attack]
    run = strangers(**changes(str(mark)))
    before = sorted(mark.parent.rglob("*"))
    assert said in opened(way, run, trained.path, monkeypatch, capsys)
    with pytest.raises(ValueError):
        maml_dist.load(run)
    assert sorted(mark.parent.rglob("*")) == before and not mark.exists()


@pytest.mark.parametrize("path", [["."], [""], []])
def test_the_working_directory_is_no_ones_who_opens_a_run(strangers, mark, monkeypatch, path):
    """Nor is the folder of a script, or an interactive Python's path."""
    run = strangers(model="evil.Net")
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "path", [*path, *sys.path])
    with pytest.raises(ValueError, match="module evil in .*theirs/run is refused.*--trust"):
        maml_dist.load(run)
    with pytest.raises(ValueError, match="is refused"):
        build(Run.open(run).config)
    assert not mark.exists()


def test_what_is_loaded_already_is_not_trusted_for_that(strangers, mark, monkeypatch):
    calls = []
    module = ModuleType("evil")
    module.Net = type("Net", (torch.nn.Linear,), {"__init__": lambda self: calls.append(self)})
    monkeypatch.setitem(sys.modules, "evil", module)
    for named in ("evil.Net", "__main__.Net"):
        with pytest.raises(ValueError, match="No module named"):
            maml_dist.load(strangers(model=named))
    assert not calls


def test_the_private_name_of_a_module_opens_no_door(strangers, mark):
    run = mark.parent / "theirs" / "run"
    from maml_dist.config.user_code import package

    for named in (f"{package(run)}.evil.Net", "maml_dist.config.user_code.theirs.evil.Net"):
        with pytest.raises(ValueError):
            maml_dist.load(strangers(model=named))
    with pytest.raises(ValueError, match="--trust"):
        maml_dist.load(strangers(**env(f"{package(run)}.evil.World")))
    assert not mark.exists()


def test_an_installed_module_that_another_hides_is_not_taken(strangers, mark, monkeypatch):
    """A file in the working directory that is named as an installed package is."""
    run = strangers(model="jinja9.Net")
    site = mark.parent / "site"
    site.mkdir()
    (site / "jinja9.py").write_text("class Net: ...")
    (run / "jinja9.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.setattr(trust, "_site_folders", lambda: [str(site)])
    monkeypatch.setattr(sys, "path", [str(run), str(site), *sys.path])
    with pytest.raises(ValueError, match="is refused"):
        maml_dist.load(run)
    assert not mark.exists()


def test_a_command_imports_nothing_from_where_it_is_started(strangers, mark):
    run = strangers()
    for name in ("torch", "typing", "random", "statistics", "evil"):
        (run / f"{name}.py").write_text(EVIL.format(mark=str(mark)))
    words = [sys.executable, "-m", "maml_dist.evaluate", ".", "--json"]
    done = subprocess.run(words, cwd=run, capture_output=True, text=True)
    assert done.returncode == 0 and '"recipe": "sinusoid"' in done.stdout, done.stderr
    assert not mark.exists()


def test_a_search_of_a_strangers_recipe(strangers, mark, monkeypatch, capsys):
    strangers(**env("subprocess:Popen", args=["touch", str(mark)]))
    search = {"recipe": str(mark.parent / "theirs" / "run" / "recipe.yaml")}
    search |= {"search": {"learner.alpha": {"choice": [0.1]}}}
    (mark.parent / "theirs" / "search.yaml").write_text(yaml.safe_dump(search))
    monkeypatch.setattr(sys, "argv", ["tune", str(mark.parent / "theirs" / "search.yaml")])
    assert guarded(tune.main) == 2
    assert "no gymnasium.Env" in capsys.readouterr().err
    assert not mark.exists() and not (mark.parent / "elsewhere" / "runs").exists()


# One's own.


@pytest.fixture
def mine(tmp_path):
    """A folder with a recipe and a model of one's own."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, width: int = 4):\n"
        "        super().__init__(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))\n"
    )
    recipe = {**compose("sinusoid"), "model": {"class_path": "nets.Net"}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def forget(monkeypatch):
    """As another process that trusts nothing."""
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.setattr(trust, "_given", [])


def test_what_one_trains_is_trusted_in_that_process_and_by_a_flag_in_the_next(
    mine, tmp_path, monkeypatch, capsys
):
    run = maml_dist.meta_train(mine / "mine.yaml", run=tmp_path / "run", **SMALL)
    assert run.config["model"]["class_path"] == "nets.Net"
    assert type(maml_dist.load(run.path)).__name__ == "Net"
    forget(monkeypatch)
    line = opened("evaluate", run.path, None, monkeypatch, capsys)
    assert line.startswith(f"error: the module nets in {mine} is refused")
    with pytest.raises(ValueError, match="is refused"):
        maml_dist.meta_train(resume=run.path, **{"local": True, "iterations": 1})
    for words in (["--trust", str(mine)], ["--trust", str(tmp_path), "--trust", f"{mine}/nets.py"]):
        forget(monkeypatch)
        assert evaluate.main([str(run.path), "--json", *words]) == 0
    forget(monkeypatch)
    assert type(maml_dist.load(run.path, trust=mine)).__name__ == "Net"
    forget(monkeypatch)
    resumed = maml_dist.meta_train(
        resume=run.path, trust=[mine], local=True, progress=False, iterations=1
    )
    assert resumed.finished


def test_a_run_whose_folder_has_moved_is_given_another(mine, tmp_path, monkeypatch):
    run = maml_dist.meta_train(mine / "mine.yaml", run=tmp_path / "run", **SMALL)
    mine.rename(tmp_path / "moved")
    forget(monkeypatch)
    with pytest.raises(ValueError, match="No module named 'nets' .not in .*mine either"):
        maml_dist.load(run.path)
    assert type(maml_dist.load(run.path, trust=tmp_path / "moved")).__name__ == "Net"


@pytest.mark.parametrize("path", ["nowhere", "nowhere/nets.py"])
def test_only_what_is_there_is_trusted(tmp_path, monkeypatch, path):
    with pytest.raises(ValueError, match=f"trust {path}: there is no such file or folder"):
        maml_dist.load(tmp_path, trust=path)


@pytest.mark.parametrize(
    "words",
    [
        {"model": "nets.Net"},
        {"model.class_path": "nets.Net", "model.width": 3},
        {"model": {"class_path": "nets.Net", "init_args": {"width": 3}}},
    ],
)
def test_a_class_path_that_one_types_may_be_in_the_working_directory(mine, monkeypatch, words):
    monkeypatch.chdir(mine)
    config = compose("sinusoid", words)
    assert config["code"] == [str(mine)] and type(build(config).model).__name__ == "Net"


def test_or_where_python_would_import_it_from(mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))
    config = compose("sinusoid", {"model": "nets.Net"})
    assert config["code"] == [str(mine)] and type(build(config).model).__name__ == "Net"


def test_but_not_one_that_a_recipe_has(mine, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (mine / "mine.yaml").rename(tmp_path / "configs" / "mine.yaml")
    monkeypatch.chdir(mine)
    with pytest.raises(ValueError, match=f"module nets in {mine} is refused"):
        compose(tmp_path / "configs" / "mine.yaml")
    recipe = yaml.safe_load((tmp_path / "configs" / "mine.yaml").read_text())
    (tmp_path / "configs" / "mine.yaml").write_text(yaml.safe_dump({**recipe, "code": ["../mine"]}))
    config = compose(tmp_path / "configs" / "mine.yaml")
    assert config["code"] == [str(tmp_path / "configs"), str(mine)]
    assert type(build(config).model).__name__ == "Net"


def test_a_text_that_is_no_class_path_imports_nothing(tmp_path, monkeypatch):
    """Though it looks like one, and a file of that name is there."""
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path)
    config = compose("sinusoid", {"description": "evil.Net", "checkpoints": "evil.Net"})
    build(config)
    assert config["code"] == [] and not (tmp_path / "mark").exists()


def test_a_class_of_ones_own_script(monkeypatch):
    class Net(torch.nn.Linear):
        def __init__(self):
            super().__init__(1, 1)

    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    Net.__module__, Net.__qualname__ = "__main__", "Net"
    config = compose("sinusoid", {"model": "__main__.Net"})
    assert isinstance(build(config).model, Net)
    forget(monkeypatch)
    with pytest.raises(ValueError, match="No module named '__main__'"):
        build(config)


@pytest.mark.parametrize("code", [5, [1], "nets", {"a": 1}])
def test_folders_of_another_form_are_one_line(mine, code):
    recipe = yaml.safe_load((mine / "mine.yaml").read_text())
    (mine / "mine.yaml").write_text(yaml.safe_dump({**recipe, "code": code}))
    with pytest.raises(ValueError, match="code=.*: must be a list of folders"):
        compose(mine / "mine.yaml")


def test_a_class_of_ones_own_may_take_what_the_package_and_torch_have(mine):
    """Modules, functions and untyped arguments; of Python's own functions harmless ones."""
    (mine / "nets.py").write_text(
        "import math\nfrom collections.abc import Callable\n"
        "import torch\nfrom torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, body: nn.Module, norm: type[nn.Module], some=None,\n"
        "                 act: Callable = torch.tanh, other: Callable = math.sin):\n"
        "        super().__init__(1, 1)\n"
        "        self.taken = body, norm, some, act, other\n"
    )
    arguments = {"body": "torch.nn.Tanh", "norm": "torch.nn.BatchNorm1d", "some": spec("nets.Net2")}
    arguments |= {"some": spec("torch.nn.ReLU"), "act": "torch.nn.functional.relu"}
    recipe = {**compose("sinusoid"), "model": spec("nets.Net", **arguments)}
    (mine / "mine.yaml").write_text(yaml.safe_dump(recipe))
    config = compose(mine / "mine.yaml")
    body, norm, some, act, other = build(config).model.taken
    assert isinstance(body, torch.nn.Tanh) and norm is torch.nn.BatchNorm1d
    assert isinstance(some, torch.nn.ReLU) and act is torch.nn.functional.relu
    assert other(0.5) == pytest.approx(0.4794, abs=1e-4)
    recipe["model"]["init_args"]["act"] = "os.system"
    (mine / "mine.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="os.system is refused"):
        compose(mine / "mine.yaml")


def test_the_folder_of_the_script_that_runs_is_ones_own(tmp_path):
    mine, work = tmp_path / "mine", tmp_path / "work"
    mine.mkdir(), work.mkdir()
    (mine / "nets.py").write_text("import torch\n\nclass Net(torch.nn.Linear):\n    pass\n")
    config = compose("sinusoid", {})
    model = {"class_path": "nets.Net", "init_args": {"in_features": 1, "out_features": 1}}
    (mine / "mine.yaml").write_text(yaml.safe_dump({**config, "model": model}))
    run = maml_dist.meta_train(mine / "mine.yaml", run=tmp_path / "run", **SMALL)
    opens = f"import maml_dist; print(type(maml_dist.load({str(run.path)!r})).__name__)"
    (mine / "serve.py").write_text(opens)
    (work / "serve.py").write_text(opens)
    here, there = (
        subprocess.run(
            [sys.executable, folder / "serve.py"], capture_output=True, text=True, cwd=work
        )
        for folder in (mine, work)
    )
    assert here.stdout == "Net\n", here.stderr
    assert there.returncode and f"trust={str(mine)!r}" in there.stderr
