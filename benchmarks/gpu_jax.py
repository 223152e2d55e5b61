"""JAX on the same device: one `jit` of the meta-gradient, vmapped over the tasks.

    python benchmarks/gpu_jax.py [--workloads A,B,C,D,T] [--precision float32] [--dry-run]

Images twice: with lax's convolution, and with shifted slices and one matrix product. As in the
other rows, milliseconds are of a whole meta-batch, and the error is that of two tasks, relative to
torch's float64 on the CPU. Where JAX is not installed, or sees no GPU though torch does, a row says
so.
"""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however it is started
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes the whole GPU

import numpy as np  # noqa: E402 - after the path
import torch  # noqa: E402

from benchmarks.gpu_by_hand import CHECKED, apart, exact  # noqa: E402
from benchmarks.gpu_cases import CASES, case  # noqa: E402
from benchmarks.gpu_rows import DEVICE, Rows, one_line, parser, timed  # noqa: E402
from benchmarks.peer_cases import Case, Workload  # noqa: E402


def main() -> None:
    """Measure; a row is written as it is there."""
    made = parser(__doc__)
    made.add_argument("--workloads", type=lambda text: text.split(","), default=list(CASES))
    made.add_argument("--precision", default="float32", help="float32 or tf32")
    made.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    options = made.parse_args()
    rows = Rows(options.rows)
    if find_spec("jax") is None:
        rows.add({"who": "JAX", "left_out": "jax is not installed"})
        return
    import jax

    there = jax.default_backend()
    if (there == "gpu") != (DEVICE == "cuda"):
        rows.add({"who": "JAX", "left_out": f"jax computes on {there}, torch on {DEVICE}"})
        return
    matmul = "tensorfloat32" if options.precision == "tf32" else "float32"
    jax.config.update("jax_default_matmul_precision", matmul)
    slow = {"B", "C", "D"} if options.dry_run else set()  # a minute each to compile on a CPU
    for name in (name for name in options.workloads if name not in slow):
        given = case(name, small=options.dry_run)
        expected = exact(given)
        for who, loss in _losses(given.workload):
            row = {"workload": name, "who": who}
            try:
                run, two = _gradient(given, loss)
                row |= timed(run, 0 if options.dry_run else options.seconds)
                row["error"] = apart(torch.from_numpy(two()), expected)
                if stats := jax.local_devices()[0].memory_stats():  # since the process began
                    row["process_peak_mib"] = round(stats["peak_bytes_in_use"] / 2**20)
            except (RuntimeError, ValueError) as error:  # loses no other's row
                row["failed"] = one_line(error)
            rows.add(row)


def _losses(workload: Workload) -> Iterator[tuple[str, Callable[..., Any]]]:
    from benchmarks import peer_jax

    if workload.layers:
        yield "JAX jit(vmap)", _transformer(workload)
    elif workload.ways:
        yield "JAX jit(vmap)", peer_jax.cross_entropy(workload, _convolve)
        yield "JAX jit(vmap), shifted slices", peer_jax.cross_entropy(workload)
    else:
        yield "JAX jit(vmap)", peer_jax.squares


def _gradient(
    given: Case, loss: Callable[..., Any]
) -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
    """The meta-gradient of the whole meta-batch, waited for; and the sum over two tasks [size]."""
    import jax

    from benchmarks.peer_jax import Form, placed, query_loss

    forms = [Form(value, given.workload) for value in given.meta.values()]
    pairs = zip(forms, given.meta.values(), strict=True)
    meta = [form.here(value) for form, value in pairs]
    data = [placed(values[:1])[0] for values in (*given.support, *given.query)]
    task = query_loss(given.workload, loss)

    @jax.jit
    def gradient(meta: Any, *data: Any) -> Any:
        def total(meta: Any) -> Any:
            return jax.vmap(task, (None, 0, 0, 0, 0))(meta, *data).sum()

        return jax.grad(total)(meta)

    def two() -> np.ndarray:
        found = gradient(meta, *(values[:CHECKED] for values in data))
        both = zip(forms, found, strict=True)
        return np.concatenate([form.back(value).ravel() for form, value in both])

    return lambda: jax.block_until_ready(gradient(meta, *data)), two


def _convolve(x: Any, kernel: Any, workload: Workload) -> Any:
    """x [n, height, width, channels], kernel [3, 3, channels, filters]; padded by 1."""
    from jax import lax

    stride = 1 if workload.pooled else 2
    layout = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (1, 1))
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


def _transformer(workload: Workload) -> Callable[..., Any]:
    """The loss of `benchmarks.transformer.Transformer`, its parameters in that order."""
    import jax
    import jax.numpy as jnp

    from benchmarks.transformer import HEADS, PATCH

    def norm(x: Any, scale: Any, shift: Any) -> Any:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + shift

    def layer(x: Any, parts: list[Any]) -> Any:
        s1, b1, s2, b2, qkv, qkv_b, out, out_b, up, up_b, down, down_b = parts
        n, tokens, width = x.shape
        heads = (norm(x, s1, b1) @ qkv + qkv_b).reshape(n, tokens, 3, HEADS, width // HEADS)
        query, key, value = heads.transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-2, -1) / (width // HEADS) ** 0.5
        seen = (jax.nn.softmax(scores) @ value).swapaxes(1, 2).reshape(n, tokens, width)
        x = x + seen @ out + out_b
        return x + jax.nn.gelu(norm(x, s2, b2) @ up + up_b, approximate=False) @ down + down_b

    def loss(phi: list[Any], x: Any, y: Any) -> Any:
        position, embed, embed_b, *rest = phi
        *layers, head, head_b = rest
        n, high, wide, channels = x.shape
        x = x.reshape(n, high // PATCH, PATCH, wide // PATCH, PATCH, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4).reshape(n, -1, channels * PATCH**2) @ embed
        x = x + embed_b + position.T  # laid out as if it were a matrix
        for start in range(0, len(layers), 12):
            x = layer(x, layers[start : start + 12])
        logits = jax.nn.log_softmax(x.mean(1) @ head + head_b)
        return -jnp.take_along_axis(logits, y[:, None], 1).mean()

    return loss


if __name__ == "__main__":
    main()
