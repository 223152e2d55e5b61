"""Callbacks: a user's functions of the rows of a run, which may stop it."""

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Callback = Callable[[Row], object]  # of a row of numbers; True stops the run at a checkpoint


class Callbacks:
    """What is called as rows are read, and whether one of them has asked to stop."""

    def __init__(
        self, on_iteration: Callback | None = None, on_validation: Callback | None = None
    ) -> None:
        """Raises ValueError where one is no function."""
        for name, each in (("on_iteration", on_iteration), ("on_validation", on_validation)):
            if each is not None and not callable(each):
                raise ValueError(f"{name}={each!r}: must be a function of a row")
        self._on_iteration, self._on_validation = on_iteration, on_validation
        self.stop = False

    def iteration(self, it: int, metrics: Row) -> None:
        """The numbers of one meta-iteration."""
        if self._on_iteration is not None:
            self._asked(self._on_iteration({"iteration": it, **metrics}))

    def validation(self, row: Row) -> None:
        """A row that holds a validation."""
        if self._on_validation is not None:
            self._asked(self._on_validation(row))

    def _asked(self, answer: object) -> None:
        self.stop = self.stop or answer is True
