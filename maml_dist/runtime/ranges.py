"""Ranges: a server's state, cut into parts of whole blocks and put together again."""

from collections.abc import Sequence

import numpy as np

from maml_dist.core.outer.optimizers import BLOCK
from maml_dist.core.tables import is_of_rows
from maml_dist.runtime.server import Saved


def cut(size: int, parts: int) -> list[slice]:
    """So many ranges of a vector [size], about equal; fewer where there are fewer blocks."""
    blocks = -(-size // BLOCK)
    ends = [BLOCK * (blocks * number // parts) for number in range(parts + 1)]
    ranges = [slice(start, min(end, size)) for start, end in zip(ends, ends[1:], strict=False)]
    return [each for each in ranges if each.start < each.stop]


def cut_evenly(size: int, parts: int) -> list[slice]:
    """So many ranges, some of nothing where there are fewer blocks: their owners have tables."""
    ranges = cut(size, parts)
    return ranges + [slice(size, size)] * (parts - len(ranges))


def part_of(saved: Saved, part: slice, *, learned: int) -> Saved:
    """The state of a range, without tables; moments are those of the elements that are learned."""
    it, meta, state = saved
    inner = slice(min(part.start, learned), min(part.stop, learned))
    return (
        it,
        meta[part],
        {
            name: value if not value.ndim else value[part if len(value) == len(meta) else inner]
            for name, value in state.items()
            if not is_of_rows(name)
        },
    )


def without_rows(saved: Saved) -> Saved:
    """The state without that of tables."""
    it, meta, state = saved
    return it, meta, {name: value for name, value in state.items() if not is_of_rows(name)}


def whole(parts: Sequence[Saved]) -> Saved:
    """The state of all ranges, in their order."""
    it, _, first = parts[0]
    meta = np.concatenate([each[1] for each in parts])
    state = {
        name: np.concatenate([each[2][name] for each in parts]) if value.ndim else value
        for name, value in first.items()
    }
    return it, meta, state
