"""The README's own snippets and commands."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import maml_dist
from maml_dist.config.recipe import recipes

README = (Path(__file__).parents[2] / "README.md").read_text()


def snippets() -> dict[str, str]:
    """The fenced files: their first line is a comment with the name."""
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", README, flags=re.M | re.S)
    named = {re.match(r"# (\S+\.(?:py|yaml))\n", block): block for block in blocks}
    return {match[1]: block for match, block in named.items() if match}


@pytest.mark.parametrize("name", snippets())
def test_a_snippet_is_short(name):
    assert len(snippets()[name].splitlines()) < 25


@pytest.mark.parametrize("running", ["eager", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_snippets_run_as_they_stand(tmp_path, running):
    supervised = {"lines.py", "siren.py", "heavy_ball.py", "mine.yaml"}
    assert set(snippets()) == supervised | {"reach.py", "reach.yaml"}
    for name in supervised:
        (tmp_path / name).write_text(snippets()[name])
    run = maml_dist.meta_train(
        tmp_path / "mine.yaml",
        run=tmp_path / "run",
        local=True,
        progress=False,
        iterations=200,
        test_steps=2,
        **{"engine.running": running},
    )
    steps = maml_dist.meta_test(run, tasks=100)["results"][0]["steps"]
    assert steps[2]["mean"] < 0.5 * steps[0]["mean"]
    model = maml_dist.load(run.path)
    assert type(model).__name__ == "Siren"
    x = torch.linspace(-1, 1, 5)[:, None]
    before = model(x)
    adapted = model.adapt(x, 2 * x, steps=5)
    assert (adapted(x) - 2 * x).square().mean() < (before - 2 * x).square().mean()
    assert torch.equal(model(x), before)


def test_the_environment_of_ones_own_is_learned(tmp_path, monkeypatch):
    for name in ("reach.py", "reach.yaml"):
        (tmp_path / name).write_text(snippets()[name])
    small = {"iterations": 2, "meta_batch": 3, "task.episodes": 3, "task.horizon": 5}
    small |= {"test_steps": 1, "validation_tasks": 2, "local": True, "progress": False}
    small |= {"engine.running": "eager"}
    run = maml_dist.meta_train(tmp_path / "reach.yaml", run=tmp_path / "run", **small)
    assert run.config["code"] == [str(tmp_path)]
    monkeypatch.syspath_prepend(tmp_path)  # as a script that lies there
    adapted = maml_dist.load(run.path).adapt(import_module("reach").Reach(), steps=1)
    assert adapted.act(torch.zeros(2)).shape == (2,)


def test_the_recipes_that_are_named_exist():
    named = re.findall(r"maml_dist\.train ([a-z][a-z0-9-]+)(?=[ `])", README)
    assert set(named) <= set(recipes())
    assert {"sinusoid", "omniglot-5way-1shot", "mini-imagenet-5way-1shot"} <= set(named)


def test_the_installed_package_carries_its_recipes(tmp_path):
    """From another folder, so that it is the installed package and not the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "maml_dist.train", "--list"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(recipes())


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "data", "tune"])
def test_help_is_quick_to_import_and_complete(command):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('maml_dist.{command}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'ray', 'pyarrow', 'matplotlib'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m maml_dist.{command}" in done.stdout
    assert done.stderr == ""
