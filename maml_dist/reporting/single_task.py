"""A single test task: its examples, and a model's outputs after some adaptation steps."""

from operator import itemgetter

import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode, map_tensors
from maml_dist.core.params import real_of
from maml_dist.inference.adaptable import Adaptable


def one_task(episode: Episode) -> tuple[Batch, Batch]:
    """The support set and the queries of an episode of a single task."""
    alone = map_tensors(itemgetter(0), episode)
    return alone.support[0], alone.query


def outputs(model: Adaptable, support: Batch, x: Tensor, *, steps: int) -> Tensor:
    """The model's outputs at x [n, …] after some steps on the support set."""
    like = real_of(next(model.parameters()))
    with torch.no_grad():
        x = x.to(like.dtype) if x.is_floating_point() else x
        outputs: Tensor = model.adapt(support.x, support.y, steps=steps)(x)
    return outputs
