"""JAX: one `jit` for the whole meta-iteration, Adam included, in its fastest form on a CPU.

Sinusoid: `vmap` over the tasks. Images: a `scan` over the tasks that adds their gradients up, each
convolution as shifted slices side by side and one matrix product: XLA has no fast convolution for
what second order makes of `lax.conv_general_dilated` (measured on workload B: unrolled over the
tasks 3.3 times slower and two minutes to compile; in a `scan` or `vmap` slower still).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.peer_cases import BETA, Case, Workload
from benchmarks.peer_process import Contender

Params = list[jax.Array]


class Jax(Contender):
    """The whole meta-iteration as one compiled function."""

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        jax.config.update("jax_platforms", "cpu")
        self._forms = [Form(value, case.workload) for value in case.meta.values()]
        meta = [
            form.here(value) for form, value in zip(self._forms, case.meta.values(), strict=True)
        ]
        zero = [jnp.zeros_like(value) for value in meta]
        self._state = (meta, zero, zero, jnp.zeros(()))
        data = (placed(values) for values in (*case.support, *case.query))
        self._episodes = list(zip(*data, strict=True))
        self._update = jax.jit(_iteration(case.workload))

    def iterate(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            episodes = self._episodes[self.next_batch()]
            self._state, loss = self._update(self._state, *episodes)
            losses.append(loss)
        return [float(loss) for loss in losses]

    def moment(self) -> np.ndarray:
        return np.concatenate(
            [
                form.back(value).ravel()
                for form, value in zip(self._forms, self._state[1], strict=True)
            ]
        )


def query_loss(workload: Workload, loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """(meta, an episode) -> the query loss of one task after its inner steps."""

    def task(meta: Params, *episode: jax.Array) -> jax.Array:
        sx, sy, qx, qy = episode
        phi = meta
        for _ in range(workload.steps):
            gradient = jax.grad(loss)(phi, sx, sy)
            if workload.first_order:
                gradient = lax.stop_gradient(gradient)
            phi = jax.tree.map(lambda p, g: p - workload.alpha * g, phi, gradient)
        return loss(phi, qx, qy)

    return task


def _iteration(workload: Workload) -> Callable[..., Any]:
    task = query_loss(workload, cross_entropy(workload) if workload.ways else squares)

    def together(meta: Params, *episodes: jax.Array) -> tuple[jax.Array, Params]:
        def mean(meta: Params) -> jax.Array:
            return jax.vmap(task, (None, 0, 0, 0, 0))(meta, *episodes).mean()

        return jax.value_and_grad(mean)(meta)

    def one_by_one(meta: Params, *episodes: jax.Array) -> tuple[jax.Array, Params]:
        def add(sums: Any, episode: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(task)(meta, *episode)), None

        zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), meta))
        sums, _ = lax.scan(add, zero, episodes)
        return jax.tree.map(lambda value: value / workload.tasks, sums)

    gradient = one_by_one if workload.ways else together

    def update(state: Any, *episodes: jax.Array) -> tuple[Any, jax.Array]:
        meta, first, second, count = state
        value, g = gradient(meta, *episodes)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, g)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, g)
        scale1, scale2 = 1 - 0.9**count, 1 - 0.999**count
        meta = jax.tree.map(
            lambda p, m, v: p - BETA * (m / scale1) / (jnp.sqrt(v / scale2) + 1e-8),
            meta, first, second,
        )  # fmt: skip
        return (meta, first, second, count), value

    return update


def squares(phi: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of the perceptron."""
    for layer in range(0, len(phi) - 2, 2):
        x = jax.nn.relu(x @ phi[layer] + phi[layer + 1])
    return jnp.square(x @ phi[-2] + phi[-1] - y).mean()


def cross_entropy(
    workload: Workload, convolve: Callable[..., jax.Array] | None = None
) -> Callable[..., jax.Array]:
    """The loss of conv4, by `convolve` (x, kernel, workload), or by shifted slices if None."""
    convolve = convolve or _convolve

    def loss(phi: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        for layer in range(4):
            kernel, scale, shift = phi[3 * layer : 3 * layer + 3]
            x = jax.nn.relu(_normalise(convolve(x, kernel, workload), scale, shift))
            x = _pool(x) if workload.pooled else x
        x = x.reshape(len(x), -1) if workload.pooled else x.mean((1, 2))
        logits = jax.nn.log_softmax(x @ phi[-2] + phi[-1])
        return -jnp.take_along_axis(logits, y[:, None], 1).mean()

    return loss


def _convolve(x: jax.Array, kernel: jax.Array, workload: Workload) -> jax.Array:
    """x [n, height, width, channels], kernel [3, 3, channels, filters]; padded by 1."""
    n, height, width, channels = x.shape
    stride = 1 if workload.pooled else 2
    high, wide = -(-height // stride), -(-width // stride)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + stride * high : stride, j : j + stride * wide : stride]
        for i in range(3)
        for j in range(3)
    ]
    rows = jnp.concatenate(shifted, -1).reshape(-1, 9 * channels)
    return (rows @ kernel.reshape(9 * channels, -1)).reshape(n, high, wide, -1)


def _normalise(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) * (lax.rsqrt(variance + 1e-5) * scale) + shift


def _pool(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    high, wide = height // 2, width // 2
    return x[:, : 2 * high, : 2 * wide].reshape(n, high, 2, wide, 2, channels).max((2, 4))


class Form:
    """How a torch parameter is laid out here: channels last, matrices from the left."""

    def __init__(self, value: np.ndarray, workload: Workload) -> None:
        self._flattened = (workload.filters, -1) if workload.pooled and value.ndim == 2 else None
        self._shape = value.shape

    def here(self, value: np.ndarray) -> jax.Array:
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            if self._flattened:  # its inputs run over channels, then space
                value = value.reshape(len(value), *self._flattened).swapaxes(1, 2)
            value = value.reshape(self._shape).T
        return jnp.asarray(value)

    def back(self, value: jax.Array) -> np.ndarray:
        there = np.asarray(value)
        if there.ndim == 4:
            return there.transpose(3, 2, 0, 1)
        if there.ndim == 2:
            there = there.T
            if self._flattened:
                return there.reshape(len(there), *self._flattened[::-1]).swapaxes(1, 2)
        return there


def placed(values: np.ndarray) -> list[jax.Array]:
    """One array for each meta-batch, images with their channels last."""
    if values.ndim > 4:
        values = np.moveaxis(values, -3, -1)
    return [jnp.asarray(batch) for batch in values]
