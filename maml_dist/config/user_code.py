"""The user's own modules: loaded by their path, under names of their own.

`/home/me/nets.py` is `maml_dist.config.user_code._2fhome_2fme.nets`: a package stands for each
folder. So folders may hold files of one name, no file hides an installed module, and any process
that has the folder finds the module again by its name, as pickle does; on machines that have not,
`Sources` brings it. In these modules `import blocks` finds what lies beside them.
"""

import builtins
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from os import fsdecode, fsencode
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from maml_dist.config.aliases import import_now
from maml_dist.core.own_code import PACKAGE

assert __name__ == PACKAGE
__path__: list[str] = []  # makes a package of this module, so that there can be modules in it

# What one's own modules are written against stays what it is, whatever lies beside them.
THEIRS = sys.stdlib_module_names | {"gymnasium", "maml_dist", "mujoco", "numpy", "ray", "torch"}

_loaded: dict[str, tuple[str, bytes, bool]] = {}  # module -> file, source, whether a package
_sent: dict[str, tuple[str, bytes, bool]] = {}  # those that another process has sent
_beside: dict[str, list[str]] = {}  # package of a folder -> those whose modules it finds too


class OwnCodeError(ValueError):
    """What is wrong with a user's own code: it is not trusted, or it raised."""


def package(folder: str | Path) -> str:
    """The name of the package that stands for a folder."""
    letters = (
        chr(byte) if chr(byte).isalnum() and byte < 128 else f"_{byte:02x}"
        for byte in fsencode(Path(folder).resolve())
    )
    return f"{__name__}.{''.join(letters)}"


def folder_of(module: str) -> Path | None:
    """The folder of one of these modules, by its name; None for all others."""
    if not module.startswith(f"{__name__}."):
        return None
    encoded = module.removeprefix(f"{__name__}.").partition(".")[0]
    plain = re.sub(rb"_([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), encoded.encode())
    folder = Path(fsdecode(plain))
    return folder if folder.is_absolute() else None


def spelled(text: str) -> str:
    """A text in which modules are called as their user calls them."""
    return re.sub(rf"{re.escape(__name__)}\.\w+\.", "", text)


def find(folder: str | Path, module: str) -> ModuleSpec | None:
    """Where a module lies in a folder, None if nowhere; nothing is executed."""
    name, places = package(folder), [str(folder)]
    spec: ModuleSpec | None = None
    for part in module.split("."):
        name = f"{name}.{part}"
        found = (_finder(place).find_spec(name) for place in places)
        spec = next((one for one in found if one is not None), None)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return spec if spec is not None and spec.loader is not None else None


def load(module: str) -> ModuleType:
    """Import one of these modules.

    Raises:
        OwnCodeError: it raised; names file, line and what.
    """
    with raised_told():
        return import_module(module)


@contextmanager
def raised_told(before: str = "") -> Iterator[None]:
    """Inside, whatever a user's code raises is raised as one line: file, line and what.

    A ValueError or OSError that is not of the user's own lines says already what is wrong.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        frames = [
            (str(frame.f_globals.get("__name__")), f"{frame.f_code.co_filename}, line {line}: ")
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]
        own = [line for module, line in frames if folder_of(module)]
        ours = frames[-1][0].startswith("maml_dist.") and not folder_of(frames[-1][0])
        if isinstance(error, ValueError | OSError) and (ours or not own):
            raise
        where, said = own[-1] if own else "", str(error)
        if isinstance(error, SyntaxError) and error.filename:
            where, said = f"{error.filename}, line {error.lineno}: ", error.msg
        now = import_now(error.name) if isinstance(error, ImportError) else None
        said = (f": {said}" if said else "") + (f" (since 0.2.0: {now})" if now else "")
        raise OwnCodeError(spelled(f"{before}{where}{type(error).__name__}{said}")) from error


def join(folders: Sequence[str | Path]) -> None:
    """From now on the modules of each of these folders find those of the others too."""
    names = [package(folder) for folder in folders]
    for name in names:
        known = _beside.setdefault(name, [name])
        known += [other for other in names if other not in known]


class Sources:
    """All of the user's own modules that are loaded: unpickled elsewhere, they can be imported."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, ({**_sent, **_loaded}, dict(_beside))


def _arrive(modules: dict[str, tuple[str, bytes, bool]], beside: dict[str, list[str]]) -> None:
    _sent.update(modules)
    _beside.update(beside)


class _Loader(SourceFileLoader):
    """Loads a file, or what was sent of it."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code, compiled anew: nothing is left in the user's folder."""
        if fullname in _sent:
            source = _sent[fullname][1]
        else:
            source = self.get_data(self.path)
            _loaded[fullname] = self.path, source, self.is_package(fullname)
        compiled: CodeType = self.source_to_code(source, self.path)
        return compiled

    def exec_module(self, module: ModuleType) -> None:
        """Run it, with an `import` that finds what lies beside it."""
        own = {**vars(builtins), "__import__": _importing(_root(module.__name__))}
        vars(module)["__builtins__"] = own
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the packages of folders, and the modules in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of these modules; None for all others."""
        folder = folder_of(fullname)
        if folder is None:
            return None
        if fullname == _root(fullname):
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        if fullname in _sent:
            file, _, is_package = _sent[fullname]
            return importlib.util.spec_from_file_location(
                fullname,
                file,
                loader=_Loader(fullname, file),
                submodule_search_locations=[str(Path(file).parent)] if is_package else None,
            )
        specs = (_finder(place).find_spec(fullname) for place in path or ())
        return next((spec for spec in specs if spec is not None), _sent_within(fullname))


def _sent_within(name: str) -> ModuleSpec | None:
    """A folder of modules without `__init__.py`, on a machine that has not got it."""
    if not any(module.startswith(f"{name}.") for module in _sent):
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = []
    return spec


def _root(module: str) -> str:
    """The package of the folder that a module is of."""
    return ".".join(module.split(".")[: __name__.count(".") + 2])


def _finder(place: str) -> FileFinder:
    """A finder of a folder that remembers nothing: a file may have come a moment ago."""
    own = (_Loader, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)
    return FileFinder(place, *own)


def _importing(root: str) -> Callable[..., Any]:
    """`__import__` of the modules of a folder."""

    def importing(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        top = name.partition(".")[0]
        own = None if level or top in THEIRS else _sibling(root, top)
        if own is None:
            return builtins.__import__(name, globals, locals, fromlist, level)
        whole = f"{own}.{name}"
        if fromlist:
            return builtins.__import__(whole, globals, locals, fromlist, 0)
        import_module(whole)
        return sys.modules[f"{own}.{top}"]

    return importing


def _sibling(root: str, top: str) -> str | None:
    """The package that holds what modules of `root` mean by `import top`; None: an installed one.

    A folder without `__init__.py` comes last, as it does in Python.
    """
    loose = None
    for own in _beside.get(root, [root]):
        import_module(own)
        spec = importlib.util.find_spec(f"{own}.{top}")
        if spec is not None and spec.loader is not None:
            return own
        loose = loose or (own if spec is not None else None)
    return None if loose is None or PathFinder.find_spec(top) is not None else loose


sys.meta_path.insert(0, _Finder())  # before that of Python, whose loader knows no siblings
