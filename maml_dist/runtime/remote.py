"""How an actor's methods are called, on Ray or in this process: `actor.method.remote(…)`.

The actors are plain classes. Their methods that a driver calls are marked, which changes nothing
but their types: so an editor leads from `shard.gradient.remote(meta, it)` to `TaskShard.gradient`,
and mypy knows what comes back.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
T_co = TypeVar("T_co", covariant=True)
U_co = TypeVar("U_co", covariant=True)


class Ref(Generic[T_co]):
    """A result: on Ray a reference to it, in this process the value itself stands for one."""


class Remote(Protocol[P, T_co]):
    """A method; `remote` takes references in the place of any of its arguments."""

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> T_co: ...

    def remote(self, *arguments: Any, **options: Any) -> Ref[T_co]: ...


class RemotePair(Protocol[P, T_co, U_co]):
    """A method whose two results are two references."""

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> tuple[T_co, U_co]: ...

    def remote(self, *arguments: Any, **options: Any) -> tuple[Ref[T_co], Ref[U_co]]: ...


class Get(Protocol):
    """Waits for results. Raises what the actor raised; ChildProcessError where one was lost."""

    @overload
    def __call__(self, references: Ref[T]) -> T: ...

    @overload
    def __call__(self, references: list[Ref[T]]) -> list[T]: ...


def remote(method: Callable[Concatenate[S, P], T]) -> Remote[P, T]:
    """Mark a method that a driver calls."""
    return cast(Remote[P, T], method)


def remote_pair(method: Callable[Concatenate[S, P], tuple[T, U]]) -> RemotePair[P, T, U]:
    """Mark a method whose results a driver passes on one by one."""
    return cast(RemotePair[P, T, U], method)


class Here:
    """Gives a plain object an actor's way of being called."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, method))
