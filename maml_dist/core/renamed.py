"""Renamed methods: what 0.1.0 called them is refused, for it would be passed over in silence."""

from collections.abc import Mapping
from inspect import get_annotations


def refuse_renamed(cls: type, names: Mapping[str, str], *, fields: bool = True) -> None:
    """Refuse a class that overrides a method by the name that it had in 0.1.0.

    Args:
        cls: the class; one that has the new name too, no deeper in it, is of this version.
        names: the old names -> the new ones.
        fields: whether a field of an old name is refused too, or may be one of the class's own.

    Raises:
        ValueError: in one line.
    """
    for old, new in names.items():
        for each in cls.__mro__:
            if new in vars(each):
                break
            if old in vars(each) and (fields or old not in get_annotations(each)):
                raise ValueError(
                    f"{cls.__name__} overrides {old}, which is called {new} since 0.2.0: rename it"
                )
