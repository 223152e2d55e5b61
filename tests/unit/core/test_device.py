"""Device errors found without a device: a tensor made on the wrong device is an error here."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from maml_dist.core.engine import Engine, MetaGradient
from maml_dist.core.episode import Batch, supervised
from maml_dist.core.objective import Objective
from maml_dist.core.outer import Adam
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML
from maml_dist.models.conv4 import Conv4
from maml_dist.tasks.sinusoid import Sinusoid


class Labels(Sinusoid):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("batching", ["task", "vmap"])
def test_everything_is_made_where_the_parameters_are(batching, first_order):
    with FakeTensorMode(), torch.device("meta"):
        model = Conv4(5, filters=4)
        params = {name: p.detach() for name, p in model.named_parameters()}
        batch = Batch(torch.empty(2, 5, 1, 28, 28), torch.zeros(2, 5, dtype=torch.int64))
        episode = supervised(batch, batch, steps=2)
        meta, it = flatten(params), torch.zeros(())
    with meta.fake_mode:
        gradient, metrics = MetaGradient(
            Engine(batching, traced=False),
            MAML(steps=2, first_order=first_order),
            Objective(model, Labels()),
            into=layout(params),
        )(meta, episode, it)
        rule = Adam()
        updated, _ = rule.update(meta, gradient, rule.init(meta))
    assert gradient.device.type == updated.device.type == "meta"
    assert {value.device.type for value in metrics.values()} == {"meta"}
