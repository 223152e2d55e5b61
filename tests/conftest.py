"""Tests use one thread: their tensors are small, and many threads only wait for each other."""

import torch

torch.set_num_threads(1)
