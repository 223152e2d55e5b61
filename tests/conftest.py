"""Tests use one thread: their tensors are small, and many threads only wait for each other."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # what torch starts with, here and in the commands of tests


@pytest.fixture(autouse=True)
def lines_of_text():
    """A command that was asked for lines of JSON speaks so alone."""
    from maml_dist.loggers.lines import use_format

    yield
    use_format("text")
