"""Baselines: the return that was to be expected at an observation and a time.

    Linear    w = (F^T F + ridge I)^-1 F^T R,   V = F w,   F = [o, o^2, t, t^2, t^3, 1]
              (o clipped at ±10, t in hundreds of steps; arXiv 1604.06778, and the released code)
    Network   V of a multi-layer perceptron, after some steps of Adam on |V - R|^2

A baseline is fitted to the returns of the batch that it then predicts: one task's, with no task
axis. It is pure: the same batch, the same values. Legend: episode, time = control steps, obs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import linear, relu

from maml_dist.core.adaptation.inner_optimizers import Adam
from maml_dist.core.params import Params
from maml_dist.core.validation import check_layers, check_minimum, check_positive


@dataclass(frozen=True)
class Baseline(ABC):
    """What returns one task's observations lead to."""

    @abstractmethod
    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The expected returns [episode, time]; what it says where masked counts nowhere.

        Args:
            observations: [episode, time, obs], before the action.
            returns: [episode, time], to go.
            mask: [episode, time], 1 where the episode still runs.
        """


@dataclass(frozen=True)
class Nothing(Baseline):
    """No baseline: the advantages are the returns."""

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(returns)


@dataclass(frozen=True)
class Linear(Baseline):
    """Least squares on features of the observation and the time."""

    ridge: float = 1e-5  # added to the diagonal of F^T F

    def __post_init__(self) -> None:
        check_positive(self, "baseline", "ridge")

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The fit, solved in float64.

        The released code raises the ridge until the fit in its precision is finite. Here the
        features are first scaled to F^T F's unit diagonal (the same fit, better conditioned):
        then this ridge is enough, for observations that are finite. Of others the values are not.
        """
        clipped = observations.double().clamp(-10, 10)
        time = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float64) / 100
        time = time.expand(mask.shape).unsqueeze(-1)
        powers = [clipped, clipped**2, time, time**2, time**3, torch.ones_like(time)]
        features = torch.cat(powers, -1).flatten(0, 1)
        kept = torch.where(mask.reshape(-1, 1) > 0, features, 0)
        normal = kept.T @ kept
        normal = normal + self.ridge * torch.eye(len(normal), device=mask.device).double()
        scale = normal.diagonal().rsqrt()
        factor = torch.linalg.cholesky_ex(normal * scale * scale.unsqueeze(-1)).L
        right = (kept.T @ torch.where(mask > 0, returns, 0).double().reshape(-1)) * scale
        weights = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1) * scale
        return (features @ weights).reshape(mask.shape).to(returns.dtype)


@dataclass(frozen=True)
class Network(Baseline):
    """A small perceptron of the observation and the time, fitted anew to each batch."""

    hidden: tuple[int, ...] = (32, 32)  # widths of its ReLU layers
    steps: int = 50  # of Adam, each on the whole batch
    rate: float = 0.01  # of Adam
    seed: int = 0  # of its first weights, the same for every batch

    def __post_init__(self) -> None:
        check_layers("baseline", hidden=self.hidden)
        check_minimum(self, "baseline", steps=1, seed=0)
        check_positive(self, "baseline", "rate")

    def values(self, observations: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        """The fit: inputs and returns are standardised over the unmasked steps."""
        time = torch.arange(mask.shape[1], device=mask.device, dtype=observations.dtype)
        time = time.expand(mask.shape).unsqueeze(-1)
        inputs, _, _ = _standard(torch.cat([observations, time], -1), mask.unsqueeze(-1))
        wanted, mean, deviation = _standard(returns, mask)
        params = self._first(inputs)

        def loss(params: Params) -> Tensor:
            off = torch.where(mask > 0, self._output(params, inputs) - wanted, 0)
            return (off * off).sum() / mask.sum()

        rule = Adam()
        state = rule.init(params)
        for k in range(self.steps):
            along, state = rule.direction(grad(loss)(params), state, torch.tensor(k))
            params = {name: value - self.rate * along[name] for name, value in params.items()}
        return self._output(params, inputs) * deviation + mean

    def _first(self, inputs: Tensor) -> Params:
        """Glorot's uniform weights, zero biases; the last layer is zero: V starts as the mean."""
        random = np.random.default_rng(self.seed)  # torch's cannot be asked inside a vmap
        params: Params = {}
        widths = (inputs.shape[-1], *self.hidden, 1)
        for number, (width, after) in enumerate(zip(widths, widths[1:], strict=False)):
            bound = (6 / (width + after)) ** 0.5 if number < len(self.hidden) else 0.0
            drawn = torch.from_numpy(random.uniform(-bound, bound, (after, width)))
            params[f"{number}.weight"] = drawn.to(inputs)
            params[f"{number}.bias"] = torch.zeros(after).to(inputs)
        return params

    def _output(self, params: Params, inputs: Tensor) -> Tensor:
        """[episode, time]"""
        x = inputs
        for number in range(len(self.hidden) + 1):
            x = relu(x) if number else x
            x = linear(x, params[f"{number}.weight"], params[f"{number}.bias"])
        return x.squeeze(-1)


def _standard(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [episode, time, …] with mean 0 and deviation 1 over the unmasked steps; and these."""
    x, count = torch.where(mask > 0, x, 0), mask.sum()
    mean = x.sum((0, 1)) / count
    off = torch.where(mask > 0, x - mean, 0)
    deviation = ((off * off).sum((0, 1)) / count).sqrt() + 1e-8
    return off / deviation, mean, deviation
