"""The README and the docs: their snippets run, and what they name exists."""

import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import maml_dist
from maml_dist.config.compose import build, compose, override
from maml_dist.config.dotted_keys import candidates, flatten_keys
from maml_dist.config.recipe import recipes
from maml_dist.tuning.search_space import read
from maml_dist.tuning.tried import tried
from maml_dist.tuning.tuner import parted

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
TRAINED = {"local": True, "progress": False, "engine.running": "eager"}
OTHER_WORDS = {
    "trust",
    "checkpoint",
    "algorithm",
    "num_samples",
    "on_interrupt",
}  # of functions, of a search
COMMANDS = ["train", "evaluate", "report", "data", "tune"]


def fenced(page: str, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", PAGES[page], flags=re.M | re.S)


def inline(page: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    return sorted({" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)})


def files(page: str) -> dict[str, str]:
    """The fenced files: their first line is a comment with the name."""
    blocks = fenced(page, "python", "yaml")
    named = {re.match(r"# (\S+\.(?:py|yaml))\n", block): block for block in blocks}
    return {match[1]: block for match, block in named.items() if match}


def write(folder: Path, page: str) -> Path:
    for name, block in files(page).items():
        (folder / name).write_text(block)
    return folder


def commands() -> dict[str, str]:
    """Every command of the package, and the page that says it."""
    found = {}
    for page in PAGES:
        lines = [line for block in fenced(page, "bash") for line in block.splitlines()]
        for line in (*lines, *inline(page)):
            for part in line.split("#")[0].split("&&"):
                if match := re.search(r"python -m (maml_dist\.[a-z]+\b.*)", part):
                    found[match[1].strip()] = page
    return found


# What is run


def test_the_readme_fits_on_two_screens():
    assert len(PAGES["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "docs/bring-your-own.md"])
def test_a_snippet_is_short(page):
    assert all(len(block.splitlines()) < 25 for block in files(page).values())


def test_the_readmes_task_is_that_of_the_docs(tmp_path):
    assert files("README.md").keys() == {"lines.py", "mine.yaml"}
    assert (
        files("README.md")["lines.py"] == files("docs/bring-your-own.md")["lines.py"]
    )  # trained below
    experiment = build(compose(write(tmp_path, "README.md") / "mine.yaml"))
    assert (type(experiment.task).__name__, experiment.iterations) == ("Lines", 2000)


@pytest.mark.parametrize("running", ["eager", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_task_model_and_learner_of_ones_own_run_as_they_stand(tmp_path, running):
    write(tmp_path, "docs/bring-your-own.md")
    small = TRAINED | {"iterations": 60, "beta": 0.01, "engine.running": running}
    small |= {"test_steps": 2, "validation_tasks": 20}
    run = maml_dist.meta_train(tmp_path / "mine.yaml", run=tmp_path / "run", **small)
    steps = maml_dist.meta_test(run, tasks=100)["results"][0]["steps"]
    assert steps[2]["mean"] < 0.5 * steps[0]["mean"]
    model = maml_dist.load(run.path)
    assert type(model).__name__ == "Siren"
    x = torch.linspace(-1, 1, 5)[:, None]
    before = model(x)
    adapted = model.adapt(x, 2 * x, steps=5)
    assert (adapted(x) - 2 * x).square().mean() < (before - 2 * x).square().mean()
    assert torch.equal(model(x), before)


def test_objects_from_python_are_trained(tmp_path, monkeypatch):
    write(tmp_path, "docs/bring-your-own.md")
    monkeypatch.syspath_prepend(tmp_path)  # as scripts that lie there
    monkeypatch.chdir(tmp_path)
    small = TRAINED | {"checkpoint_every": 20, "validation_tasks": 20, "meta_batch": 4}
    train = maml_dist.meta_train
    monkeypatch.setattr(maml_dist, "meta_train", lambda **given: train(**given | small))
    found: dict[str, Any] = {"__name__": "seeds"}
    exec((tmp_path / "seeds.py").read_text(), found)
    one, other = found["runs"]
    assert one.config["task"]["class_path"].endswith("lines.Lines") and one.config["seed"] == 0
    assert other.config["model"]["init_args"]["what"] == "seeds.net"
    frame = found["frame"]
    assert frame["val/loss"].dropna().iloc[-1] < 0.02 and frame.index[-1] < 2000  # it was stopped


def test_many_users_are_served(tmp_path, monkeypatch):
    write(tmp_path, "docs/bring-your-own.md")
    monkeypatch.chdir(tmp_path)
    small = TRAINED | {"iterations": 0, "validation_tasks": 2, "test_steps": 2}
    maml_dist.meta_train("mine.yaml", run="runs/mine", **small)
    found: dict[str, Any] = {}
    exec((tmp_path / "many.py").read_text(), found)
    assert found["outputs"].shape == (1000, 5, 1)
    torch.testing.assert_close(found["outputs"], found["same"])
    torch.testing.assert_close(found["first"](found["x"][0]), found["outputs"][0])


def test_loops_of_ones_own_learn(tmp_path, monkeypatch):
    write(tmp_path, "docs/bring-your-own.md")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_loop.py", "clones.py"):
        found: dict[str, Any] = {}
        torch.manual_seed(0)
        exec((tmp_path / name).read_text(), found)
        x = torch.linspace(-1, 1, 5)[:, None]
        maml = found.get("maml") or maml_dist.MetaModule(found["model"], found["learner"])
        clone = maml.clone(differentiable=False)
        before = (clone(x) - 2 * x).square().mean()
        for _ in range(2):
            clone.adapt((clone(x) - 2 * x).square().mean())
        assert (clone(x) - 2 * x).square().mean() < 0.05 * before


def test_the_environment_of_ones_own_is_learned(tmp_path, monkeypatch):
    write(tmp_path, "docs/bring-your-own.md")
    small = {"iterations": 2, "meta_batch": 3, "task.episodes": 3, "task.horizon": 5}
    small |= {"test_steps": 1, "validation_tasks": 2} | TRAINED
    run = maml_dist.meta_train(tmp_path / "reach.yaml", run=tmp_path / "run", **small)
    assert run.config["code"] == [str(tmp_path)]
    monkeypatch.syspath_prepend(tmp_path)  # as a script that lies there
    adapted = maml_dist.load(run.path).adapt(import_module("reach").Reach(), steps=1)
    assert adapted.act(torch.zeros(2)).shape == (2,)


def test_data_of_ones_own_are_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=400) for name in ("hour", "weekday", "usage")}
    table = pa.table({"user": np.repeat(np.arange(40), 10), **rows})
    pq.write_table(table, tmp_path / "users.parquet")
    for split in ("train", "val", "test"):
        for kind in range(5):
            folder = tmp_path / "birds" / split / f"kind{kind}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    write(tmp_path, "docs/bring-your-own.md")
    monkeypatch.chdir(tmp_path)
    sizes = {
        "users.yaml": {},
        "birds.yaml": {"query": 1, "data.size": 16, "filters": 2, "steps": 1},
    }
    small = TRAINED | {"iterations": 1, "test_steps": 1, "validation_tasks": 2, "meta_batch": 2}
    for name, size in sizes.items():
        run = maml_dist.meta_train(name, run=tmp_path / f"run-{name}", **small, **size)
        assert run.finished


def test_the_python_example_runs_as_it_stands(tmp_path, monkeypatch):
    small = TRAINED | {"run": tmp_path / "run", "iterations": 1, "validation_tasks": 2}
    small |= {"test_tasks": 2}
    train = maml_dist.meta_train
    monkeypatch.setattr(
        maml_dist, "meta_train", lambda recipe, **given: train(recipe, **given | small)
    )
    (example,) = [block for block in fenced("README.md", "python") if "meta_train" in block]
    assert example in fenced("docs/index.md", "python")
    found: dict[str, Any] = {}
    exec(example, found)
    assert found["adapted"](found["x"]).shape == (10, 1)
    assert len(found["result"]["results"][0]["steps"]) == 11


def test_the_example_of_a_policy_runs_as_it_stands(tmp_path):
    small = TRAINED | {"iterations": 0, "validation_tasks": 2, "horizon": 3, "episodes": 2}
    run = maml_dist.meta_train("navigation", run=tmp_path / "run", test_steps=1, **small)
    (example,) = fenced("docs/reinforcement-learning.md", "python")
    write(tmp_path, "docs/bring-your-own.md")
    found: dict[str, Any] = {}
    exec((tmp_path / "reach.py").read_text(), found)
    found["env"] = found["Reach"]()
    exec(example.replace("runs/navigation-…", str(run.path)), found)
    assert found["action"].shape == (2,)


def test_parts_of_recipes_are_as_they_must_be():
    for page in PAGES:
        for block in fenced(page, "yaml"):
            if not re.match(r"# \S+\.yaml\n", block):
                given = flatten_keys(yaml.safe_load(block))
                build(compose("sinusoid", {**given, "iterations": 1}))


def test_a_search_of_ones_own_is_read(tmp_path):
    folder = write(tmp_path, "docs/search.md")
    for plan in map(read, folder.glob("*.yaml")):
        base, budget = parted(plan)
        for drawn in tried(plan):
            assert build(override(base, budget | drawn))
    assert read(folder / "two-metrics.yaml").metrics == ["val/mse/path", "learner.steps"]


# What is named


@pytest.mark.parametrize("line", commands())
def test_a_command_is_one(line, tmp_path, monkeypatch, capsys):
    command, *words = shlex.split(line.removeprefix("maml_dist."))
    assert command in COMMANDS
    main = import_module(f"maml_dist.{command}").main
    with pytest.raises(SystemExit):
        main(["omniglot", "--help"] if command == "data" else ["--help"])
    told = capsys.readouterr().out
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", told))
    if not words or any(re.search("…|RECIPE", word) for word in words):
        return
    write(tmp_path, "README.md" if commands()[line] == "README.md" else "docs/bring-your-own.md")
    monkeypatch.chdir(tmp_path)
    if words[0].startswith("metaworld"):
        pytest.importorskip("metaworld", reason="Meta-World pins a mujoco of its own")
    if command == "train" and {*words} - {"--local"} <= recipe_names():
        return  # each has tests of its own
    if command == "train":
        assert main([*words, *([] if "--list" in words else ["--print-config"])]) == 0
    elif command == "tune":
        file, *overrides = words
        changes = dict(word.split("=") for word in overrides if not word.startswith("--"))
        plan = read(ROOT / file, {key: yaml.safe_load(value) for key, value in changes.items()})
        assert compose(plan.recipe, plan.overrides)


@cache
def recipe_names() -> set[str]:
    return {*recipes()}


@cache
def known_keys() -> set[str]:
    some = ("sinusoid", "omniglot-5way-1shot", "navigation-es", "half-cheetah-velocity")
    keys = set().union(*(flatten_keys(compose(name)) for name in some))
    return {key.removesuffix(".class_path") for key in keys}


@pytest.mark.parametrize("page", PAGES)
def test_settings_are_keys_of_recipes(page):
    for code in inline(page):
        words = re.findall(r"(?:^| )([a-z_.]+)=\S", code)
        if words and re.fullmatch(r"(?:[a-z-]+ )*(?:[a-z_.]+=\S+ ?|--local ?)+", code):
            for key in set(words) - OTHER_WORDS:
                assert candidates(key, known_keys()), f"{page}: {code}"


def test_the_recipes_that_are_named_exist():
    kinds = "sinusoid|omniglot|mini-imagenet|knapsack|ratings|navigation|half-cheetah|ant|grid"
    names = recipe_names() | {"mini-imagenet", "omniglot"}  # and the data sets
    for page in PAGES:
        for code in inline(page):
            if match := re.match(rf"(?:{kinds})(?:-[a-z0-9]+)*(?= [a-z_.]+=|$)", code):
                assert match[0] in names, f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_are_its_own(page):
    dotted = {code for code in inline(page) if re.fullmatch(r"maml_dist(\.[a-zA-Z]\w*)+", code)}
    dotted |= set(re.findall(r"^::: (\S+)", PAGES[page], flags=re.M))
    for name in dotted:
        module, _, last = name.rpartition(".")
        try:
            found = getattr(import_module(module), last, None)
        except ModuleNotFoundError:
            found = None
        assert found is not None or import_module(name), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    for code in inline(page):
        named = re.fullmatch(r"[\w./-]+/([\w.-]+\.(py|yaml|md))?", code)
        if named and not code.startswith("runs/"):
            within = ROOT / code, ROOT / "maml_dist" / code
            assert any(path.exists() for path in within), f"{page}: {code}"
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_methods_that_are_named_exist():
    sources = [path.read_text() for path in (ROOT / "maml_dist").rglob("*.py")]
    for code in inline("docs/architecture.md"):
        if named := re.fullmatch(r"([A-Z]\w+)\.(\w+)", code):
            own = [text for text in sources if re.search(rf"^class {named[1]}\b", text, flags=re.M)]
            assert any(f"def {named[2]}(" in text for text in own), code


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in contents
            assert f"({page})" in PAGES["README.md"]


def test_the_installed_package_carries_its_recipes(tmp_path):
    """From another folder, so that it is the installed package and not the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "maml_dist.train", "--list"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(recipes())


@pytest.mark.parametrize("command", COMMANDS)
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
