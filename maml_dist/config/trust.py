"""Trust: whose modules a recipe may name, and which classes of them may be called.

Always: what this package and what installed packages hold of its kinds (`torch.nn.Module`, and what
derives from classes of this package), and Gymnasium's environments. Modules of one's own: those of
folders that are trusted, because a recipe in a file of one's own lies there or names it in `code:`,
because the script that runs lies there, or by `--trust PATH` (`trust=`); and of class paths that
one typed oneself, those that Python would import. Never because a run says so, nor because a module
is loaded already.
"""

import importlib.util
import os
import shlex
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from maml_dist.config import user_code
from maml_dist.config.user_code import OwnCodeError, find, folder_of, load

Trust = str | Path | Iterable[str | Path]  # a folder or a file in it, or several

# Holds environments that start programs, for its own tests.
NOT_NAMED = {"ray"}


class NotTrusted(OwnCodeError):
    """What is named is there, and may not be used."""


_trusted: set[str] = set()  # folders, in this process
_given: list[str] = []  # those of them that `--trust` named: looked through for every recipe


def allow(paths: Trust) -> None:
    """From now on, modules of these folders may be loaded by this process.

    Raises:
        ValueError: there is no such file or folder.
    """
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = Path(path).expanduser().resolve()
        if not found.exists():
            raise ValueError(f"trust {path}: there is no such file or folder")
        folder = str(found if found.is_dir() else found.parent)
        own(folder)
        if folder not in _given:
            _given.append(folder)


def own(folder: str | Path) -> None:
    """Trust a folder for recipes that name it: it is the caller's own."""
    _trusted.add(str(Path(folder).resolve()))


def trusted(folders: Iterable[str]) -> list[str]:
    """Those of the folders that this process trusts."""
    return [folder for folder in folders if str(Path(folder).resolve()) in _trusted]


def flags(code: Iterable[str]) -> str:
    """What a command must say to use the modules of those folders that this process has used."""
    used = [f for f in code if any(m.startswith(f"{user_code.package(f)}.") for m in sys.modules)]
    return "".join(f" --trust {shlex.quote(folder)}" for folder in used)


@dataclass
class Names:
    """Where the class paths of one configuration lead."""

    code: Sequence[str]  # the folders that it names
    typed: Sequence[str] = ()  # class paths that the caller typed
    found: list[str] = field(default_factory=list, init=False)  # folders of what was typed

    def __post_init__(self) -> None:
        if not isinstance(self.code, list | tuple) or {*map(type, self.code)} - {str}:
            raise ValueError(f"code={self.code}: must be a list of folders")

    def module(self, name: str) -> ModuleType:
        """The module of a class path, imported.

        Raises:
            OwnCodeError: it is not trusted, or raised.
            ModuleNotFoundError: there is none.
        """
        path = self.path(name)
        return load(path) if folder_of(path) else importlib.import_module(path)

    def loaded(self, name: str) -> str:
        """As `path`, and it is imported. Raises as `module` does."""
        return self.module(name).__name__

    def path(self, name: str) -> str:
        """The name by which it is imported; nothing is executed. Raises as `module` does."""
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        folder = folder_of(name)
        if folder is not None:
            if str(folder) not in _trusted:
                raise _refused(user_code.spelled(name), str(folder))
            return name
        if name.partition(".")[0] == "maml_dist":
            return name
        for place in map(_real, self.code):
            if find(place, name):
                if place not in _trusted and place != _script_folder():
                    raise _refused(name, place)
                return self._own(place, name)
        typed = any(f"{path}.".startswith(f"{name}.") for path in self.typed)
        for place in [*_given, *([_real("")] if typed else [])]:
            if find(place, name):
                return self._own(place, name)
        if name == "__main__" and (typed or name in _trusted):
            _trusted.add(name)
            return name
        if _installed(name):
            return name
        for place in _elsewhere(name):
            if not typed:
                raise _refused(name, place)
            return self._own(place, name)
        looked = f" (not in {', '.join(self.code)} either)" if self.code else ""
        raise ModuleNotFoundError(f"No module named {name!r}{looked}", name=name)

    def _own(self, folder: str, name: str) -> str:
        code = [_real(place) for place in self.code]
        if folder not in [*code, *self.found]:
            self.found.append(folder)
        own(folder)
        folders = dict.fromkeys([folder, *code, *self.found, *_given])
        user_code.join([place for place in folders if place in _trusted])
        return f"{user_code.package(folder)}.{name}"


def _script_folder() -> str | None:
    """Where the script is that runs (`python FILE.py`), from which Python itself imports."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return str(Path(file).resolve().parent) if file and main.__spec__ is None else None


def _refused(name: str, folder: str) -> NotTrusted:
    return NotTrusted(
        f"the module {name} in {folder} is refused, for the folder is not trusted: "
        f"--trust {folder} (in Python trust={folder!r}) lets its modules run"
    )


def _installed(name: str) -> bool:
    """Whether importing it gives what is installed; of Python's own only what is loaded already."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return name in sys.modules
    if top in NOT_NAMED or name.endswith(".__main__"):  # a command, which would run
        return False
    path: Sequence[str] | None = _site_folders()
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        found = _found(".".join(parts[:count]), path)
        if found is None or not _same(found, _meant(found.name)):
            return False
        if found.origin is not None:
            return True  # what it holds is its own
        path = found.submodule_search_locations
    return False


def _found(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The spec of what is installed, also in place (`pip install -e`)."""
    spec = PathFinder.find_spec(name, path)
    for finder in sys.meta_path if spec is None and "." not in name else ():
        if getattr(finder, "__module__", "").startswith("__editable__"):
            spec = spec or finder.find_spec(name, None)
    return spec


def _meant(name: str) -> ModuleSpec | None:
    """The spec of what an import would give, which may hide what is installed."""
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # it is loaded, and tells nothing of itself
        return None


def _same(one: ModuleSpec, other: ModuleSpec | None) -> bool:
    origins = [spec.origin and os.path.realpath(spec.origin) for spec in (one, other) if spec]
    return len(origins) == 2 and origins[0] == origins[1]


def _elsewhere(name: str) -> Iterator[str]:
    """The folders, other than where Python installs, from which Python would import it."""
    if name.partition(".")[0] in sys.stdlib_module_names | NOT_NAMED:
        return
    installed = {_real(sysconfig.get_path("stdlib")), *map(_real, _site_folders())}
    for place in dict.fromkeys(map(_real, ["", *sys.path])):
        if place not in installed and find(place, name):
            yield place


@cache
def _site_folders() -> list[str]:
    """The folders where Python installs, and those that are named there (`.pth` files)."""
    folders = [
        *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
        *site.getsitepackages(),
        *([site.getusersitepackages()] if site.ENABLE_USER_SITE else ()),
    ]
    named = [
        os.path.join(folder, line.strip())
        for folder in folders
        for file in sorted(Path(folder).glob("*.pth"))
        for line in file.read_text(errors="replace").splitlines()
        if line.strip() and not line.startswith(("#", "import ", "import\t"))
    ]
    return list(dict.fromkeys([*folders, *named]))


def _real(folder: str) -> str:
    """A folder without links; the working directory for ``."""
    return str(Path(folder).resolve())
