"""Tests use one thread: their tensors are small, and many threads only wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # what torch starts with, here and in the commands of tests
