"""Recipes as plain data: the YAML files that ship with the package, and the user's own."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from maml_dist.trust import Names, own

Config = dict[str, Any]


def recipes() -> dict[str, str]:
    """The recipes that ship with the package: name -> description."""
    folder = resources.files("maml_dist") / "recipes"
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return {name[:-5]: read_yaml(str(folder / name))["description"] for name in files}


def read_yaml(path: str | Path) -> Config:
    """A YAML file as plain data; nothing in it is ever executed.

    Raises:
        ValueError: the file is missing, broken or empty, or asks for objects to be made.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path} is not a plain YAML file: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must hold keys and values, not {content!r}")
    return content


def read_recipe(recipe: str | Path) -> Config:
    """The content of a recipe, by name or by file.

    A file is the caller's own: its folder, and the folders that it names in `code:` (from there),
    are where its class paths lead, and are trusted from now on. Not so a `recipe.yaml` in the
    folder of a run, whosever that is.

    Raises:
        ValueError: there is no such recipe, or its file is not plain YAML.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        content, here = read_yaml(path), path.resolve().parent
        of_run = any((here / name).exists() for name in ("checkpoints", "metrics.jsonl"))
        if path.name == "recipe.yaml" and of_run:
            return content
        code = Names(content.get("code") or ()).code
        folders = [here, *((here / Path(folder).expanduser()).resolve() for folder in code)]
        for folder in folders:
            own(folder)
        return {**content, "code": list(dict.fromkeys(map(str, folders)))}
    file = str(resources.files("maml_dist") / "recipes" / f"{recipe}.yaml")
    if not Path(file).exists():
        raise ValueError(
            f"no recipe {str(recipe)!r}{nearest(str(recipe), list(recipes()))} "
            "(--list shows them; a file of your own ends in .yaml)"
        )
    return read_yaml(file)


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `names`, or nothing."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict; values are YAML.

    Raises:
        ValueError: a word has no key or no `=`.
    """
    pairs = [word.partition("=") for word in words]
    for word, (key, equals, _) in zip(words, pairs, strict=True):
        if not equals or not key:
            raise ValueError(f"{word!r}: expected key=value")
    return {key: _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
