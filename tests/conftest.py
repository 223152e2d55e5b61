"""Tests use one thread: their tensors are small, and many threads only wait for each other."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
torch.set_num_threads(1)
