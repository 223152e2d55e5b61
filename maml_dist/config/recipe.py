"""Recipes as plain data: the YAML files that ship with the package, and the user's own."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from maml_dist.config import plain_yaml
from maml_dist.config.aliases import key_now, removed, updated
from maml_dist.config.trust import Names, own

Config = dict[str, Any]


def recipes() -> dict[str, str]:
    """The recipes that ship with the package: name -> description."""
    return {name: read_yaml(_shipped(name))["description"] for name in _names()}


def read_yaml(path: str | Path) -> Config:
    """A YAML file as plain data; nothing in it is ever executed.

    Raises:
        ValueError: the file is missing, broken or empty, or asks for objects to be made.
    """
    return plain_yaml.read(path)


def read_recipe(recipe: str | Path) -> Config:
    """The content of a recipe, by name or by file.

    A file is the caller's own: its folder, and the folders that it names in `code:` (from there),
    are where its class paths lead, and are trusted from now on. Not so a `recipe.yaml` in the
    folder of a run, whosever that is.

    What an earlier version wrote is read in the words of this one.

    Raises:
        ValueError: there is no such recipe, or its file is not plain YAML.
    """
    plain_yaml.check_path(recipe, "the recipe")
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        content, here = updated(read_yaml(path)), path.resolve().parent
        of_run = any((here / name).exists() for name in ("checkpoints", "metrics.jsonl"))
        if path.name == "recipe.yaml" and of_run:
            return content
        code = Names(content.get("code") or ()).code
        folders = [here, *((here / Path(folder).expanduser()).resolve() for folder in code)]
        for folder in folders:
            own(folder)
        return {**content, "code": list(dict.fromkeys(map(str, folders)))}
    if str(recipe) not in _names():
        raise ValueError(
            f"no recipe {plain_yaml.short(repr(str(recipe)))}{nearest(str(recipe), _names())} "
            "(--list shows them; a file of your own ends in .yaml)"
        )
    return read_yaml(_shipped(str(recipe)))


def _names() -> list[str]:
    """The names of the recipes that ship with the package."""
    folder = resources.files("maml_dist") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def _shipped(name: str) -> str:
    """The file of one of them."""
    return str(resources.files("maml_dist") / "recipes" / f"{name}.yaml")


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?` for what `name` is called now, else the nearest; or nothing.

    Of what was removed it says so.
    """
    if removed(name, names):
        return "; it was removed in 0.2.0"
    close = [known for known in names if known.lower() == name.lower()]
    close += difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)
    meant = key_now(name, names) or next(iter(close), None)
    return f"; did you mean {meant!r}?" if meant else ""


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a dict; values are YAML.

    Raises:
        ValueError: a word has no key, `=` or value, a key comes twice, or a value is not plain.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{plain_yaml.short(repr(word))}: expected key=value")
        if not text.strip():
            raise ValueError(f"{plain_yaml.short(repr(word))}: expected key=value, null for none")
        if key in found:
            raise ValueError(f"{plain_yaml.short(key)} is given twice: leave one out")
        found[key] = _value(key, text)
    return found


def _value(key: str, text: str) -> Any:
    try:
        return plain_yaml.parse(text)
    except plain_yaml.Broken:
        return text
    except ValueError as error:
        raise ValueError(f"{plain_yaml.short(key)}: {error}") from None
