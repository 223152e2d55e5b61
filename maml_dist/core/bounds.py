"""Bounds of hyperparameters: what is out of them is refused by the key under which it is set."""

import math


def check_positive(owner: object, key: str, *names: str) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is no positive number.

    Null, which these functions let pass, is named as allowed where it is the field's default.
    """
    for name in names:
        value = getattr(owner, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key}.{name}={value}: must be a positive number{_null(owner, name)}")


def check_least(owner: object, key: str, **least: int) -> None:
    """Raise ValueError where a field of `owner`, the recipe's `key`, is less than given here."""
    for name, bound in least.items():
        value = getattr(owner, name)
        if value is not None and not bound <= value < math.inf:
            raise ValueError(f"{key}.{name}={value}: must be {bound} or more{_null(owner, name)}")


def _null(owner: object, name: str) -> str:
    """What to say of null: nothing, unless it is the default."""
    return ", or null" if getattr(type(owner), name, 0) is None else ""
