"""Gymnasium's spaces as a policy's numbers: observations flat, actions a Box's or choices.

    observations   Box as it is, images (uint8 from 0 to 255) divided by `image_scale`; Discrete,
                   MultiDiscrete and each character of a Text one-hot; Dict and Tuple in a row
    actions        Box: the policy's [-1, 1] scaled to its bounds; Discrete; MultiDiscrete,
                   MultiBinary: a choice each; Dict and Tuple of either kind, not of both

In the order of `gymnasium.spaces.flatten`, which flattens them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Space,
    Text,
    Tuple,
    flatdim,
    flatten,
)

IMAGE_SCALE = 255.0  # of pixels, unless said

AnySpace = Space[Any]
ACTED: tuple[type[AnySpace], ...] = (Box, Discrete, MultiDiscrete, MultiBinary)
SEEN = (*ACTED, Text)


class ActionForm(NamedTuple):
    """How a policy acts in a space."""

    size: int  # numbers of an action, or ways of all choices added up
    discrete: bool
    choices: tuple[int, ...]  # ways of each choice, where an action is several


def observation_size(space: AnySpace) -> int:
    """Numbers of a flattened observation.

    Raises:
        ValueError: a part of it cannot be flattened; says which.
    """
    return sum(flatdim(_characters(part)) for part in _leaves(space, "observation", SEEN))


def flatten_observation(
    observation: Any, space: AnySpace, *, image_scale: float = IMAGE_SCALE
) -> np.ndarray:
    """An environment's observation as a policy takes it: numbers [obs] float64.

    The bounds of a Box may be left, as published environments do; other spaces not.

    Raises:
        ValueError: it is not of the space; says which part.
    """
    parts = [*_flat(observation, space, "observation", image_scale)]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0), *parts])


def action_form(space: AnySpace) -> ActionForm:
    """How a policy acts in a space.

    Raises:
        ValueError: no policy does.
    """
    parts = [*_leaves(space, "action", ACTED)]
    boxes = [isinstance(part, Box) for part in parts]
    if not parts or any(boxes) != all(boxes):
        raise ValueError(
            f"the action space {space}: its parts must be all Box, or all Discrete, MultiDiscrete "
            "and MultiBinary"
        )
    if any(boxes):
        return ActionForm(sum(map(flatdim, parts)), False, ())
    choices = tuple(ways for part in parts for ways in _ways(part))
    return ActionForm(sum(choices), True, () if isinstance(space, Discrete) else choices)


def scale_action(action: np.ndarray, space: AnySpace) -> Any:
    """A policy's action [act], or [] of one discrete choice, as the environment takes it.

    Discrete choices count from the space's start. Numbers for [-1, 1] are scaled to the bounds of
    the space, and are as they are where a bound is infinite.
    """
    return _acted(np.asarray(action).reshape(-1), space)[0]


def _inside(space: AnySpace) -> Mapping[Any, AnySpace]:
    """The spaces in a space, by the names or numbers that they have there."""
    assert isinstance(space, Dict | Tuple)
    return space.spaces if isinstance(space, Dict) else dict(enumerate(space.spaces))


def _leaves(space: AnySpace, what: str, kinds: tuple[type[AnySpace], ...]) -> Iterator[AnySpace]:
    """The spaces that hold no others.

    Raises:
        ValueError: one of them is of no kind that has a place among a policy's numbers.
    """
    if isinstance(space, Dict | Tuple):
        for name, part in _inside(space).items():
            yield from _leaves(part, f"{what}[{name!r}]", kinds)
    elif isinstance(space, kinds):
        yield space
    else:
        names = ", ".join(kind.__name__ for kind in kinds)
        left_out = ": a wrapper may leave it out (gymnasium.wrappers.FilterObservation)"
        raise ValueError(
            f"the space of its {what} is {space!r}; must be {names}, or a Dict or Tuple of these"
            f"{left_out if what.startswith('observation[') else ''}"
        )


def _flat(value: Any, space: AnySpace, what: str, image_scale: float) -> Iterator[np.ndarray]:
    """The parts of an observation, flat; raises as `flatten_observation` does."""
    if isinstance(space, Dict | Tuple):
        inner = _inside(space)
        if isinstance(space, Dict):
            fits = isinstance(value, Mapping) and inner.keys() <= value.keys()
        else:
            fits = isinstance(value, tuple | list) and len(value) == len(inner)
        if not fits:
            raise ValueError(f"the {what} is {shown(value)}, which is not in {space}")
        for name, part in inner.items():
            yield from _flat(value[name], part, f"{what}[{name!r}]", image_scale)
    elif isinstance(space, Box):
        yield _box(value, space, what, image_scale)
    elif not space.contains(value):
        raise ValueError(f"the {what} is {shown(value)}, which is not in {space}")
    else:
        numbers = flatten(space, value)
        if isinstance(space, Text):
            numbers = flatten(_characters(space), numbers)
        yield np.asarray(numbers, np.float64)


def _box(value: Any, space: Box, what: str, image_scale: float) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != space.shape:
        raise ValueError(f"the {what}'s shape is {array.shape}, not {space.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the {what} is {shown(value)}: must be numbers")
    numbers = array.astype(np.float64).reshape(-1)
    return numbers / image_scale if is_image(space) else numbers


def is_image(space: AnySpace) -> bool:
    """Whether a space's values are pixels: bytes from 0 to 255 in two dimensions or three."""
    return (
        isinstance(space, Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def _characters(space: AnySpace) -> AnySpace:
    """Of a text the characters' numbers, as Gymnasium has them: one more for none; else itself."""
    if not isinstance(space, Text):
        return space
    return MultiDiscrete([len(space.character_set) + 1] * space.max_length)


def _acted(action: np.ndarray, space: AnySpace) -> tuple[Any, np.ndarray]:
    """The action in this space, and the numbers that are left for what comes next."""
    if isinstance(space, Dict | Tuple):
        parts: dict[Any, Any] = {}
        for name, part in _inside(space).items():
            parts[name], action = _acted(action, part)
        return (parts if isinstance(space, Dict) else tuple(parts.values())), action
    count = flatdim(space) if isinstance(space, Box) else len(_ways(space))
    own, rest = action[:count], action[count:]
    if isinstance(space, Box):
        return _scaled(own.reshape(space.shape), space), rest
    if isinstance(space, Discrete):
        return own[0] + space.start, rest
    start = space.start if isinstance(space, MultiDiscrete) else 0
    return (own.reshape(space.shape or ()) + start).astype(space.dtype), rest


def _scaled(action: np.ndarray, space: Box) -> np.ndarray:
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    scaled = (low + high) / 2 + (high - low) / 2 * action
    clipped: np.ndarray = np.clip(scaled, space.low, space.high).astype(space.dtype)
    return clipped


def _ways(space: AnySpace) -> tuple[int, ...]:
    """How many ways each of the choices in a discrete space has."""
    if isinstance(space, Discrete):
        return (int(space.n),)
    if isinstance(space, MultiDiscrete):
        return tuple(map(int, space.nvec.ravel()))
    return (2,) * flatdim(space)


def shown(value: Any) -> str:
    """What an environment gives, in a few words."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]} …"
