"""The global random generators, torch's, numpy's and Python's, from which constructors draw."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from maml_dist.core.process_lock import EXCLUSIVE


@contextmanager
def global_generators() -> Iterator[Callable[[int], None]]:
    """Inside, torch's, numpy's and Python's global generators can be seeded, all three by one call.

    Afterwards they are where they were. One thread at a time has them.
    """

    def seed(number: int) -> None:
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        random.seed(number)

    with EXCLUSIVE:
        state, python = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                yield seed
        finally:
            np.random.set_state(state)
            random.setstate(python)
