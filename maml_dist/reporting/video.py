"""Video: a body that runs, before and after adapting; a strip for the report and a GIF.

What is seen is drawn by MuJoCo's offscreen renderer in a process of its own, because the way to
draw (egl, osmesa) must be chosen before MuJoCo is imported, and may be missing.
"""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from maml_dist.core.data.task_source import TaskKey
from maml_dist.inference.load import load
from maml_dist.inference.policy import Policy
from maml_dist.loggers.lines import say
from maml_dist.reporting.plotting import Picture, PlottedRun
from maml_dist.runs.folder import replace as replace_file
from maml_dist.tasks.rollout import Goal, Rollouts

WAYS = ("egl", "osmesa", "glfw")  # to draw, tried in turn
FRAMES, EVERY = 6, 4  # in a row of the strip; control steps from one frame of the film to the next
HIGH, WIDE = 180, 320  # pixels


def video(drawn: Sequence[PlottedRun]) -> Picture | None:
    """Two test tasks of a body with physics: a row before and one after adapting each."""
    run = drawn[0].run
    source, steps = run.experiment.task, run.experiment.test_steps
    if not isinstance(source, Rollouts) or drawn[0].evaluation is None:
        return None
    first = source.sample(TaskKey(run.experiment.seed, "test", 0, 0))
    if not hasattr(source.simulator([first], stage=0), "physics"):
        return None
    rows = []
    for task in _different(source, run.experiment.seed):
        model: Any = load(run.path)
        for stage, name in ((0, "before"), (steps, f"after {steps} steps")):
            poses = _poses(model.learn(task, steps=stage), source, task, stage=stage)
            rows.append((f"goal {task.value[0]:+.2g}: {name}", poses))
            if not steps:
                break
    model_file, shown = source.simulator([task], stage=0), [poses for _, poses in rows]
    frames = _rendered(model_file.physics.model, np.stack(shown))  # type: ignore[attr-defined]
    if frames is None:
        say(
            "no film: MuJoCo finds no way to draw here (OpenGL by MUJOCO_GL=egl or osmesa)",
            level="warning",
        )
        return None
    _gif(frames, run.path / "figures" / "film.gif")
    places = np.stack(shown)[:, ::EVERY, 0]
    return Picture("film", _CAPTION, _strip([name for name, _ in rows], frames, places))


_CAPTION = "Test tasks before and after adapting, from left to right in time; film.gif moves."


def _different(source: Rollouts, seed: int) -> list[Goal]:
    """Two test tasks: the first, and the one whose goal is farthest from it."""
    tasks = [source.sample(TaskKey(seed, "test", 0, index)) for index in range(20)]
    away = [float(np.abs(np.subtract(task.value, tasks[0].value)).sum()) for task in tasks]
    return [tasks[0], tasks[int(np.argmax(away))]]


def _poses(policy: Policy, source: Rollouts, task: Goal, *, stage: int) -> np.ndarray:
    """The positions [time, qpos] of one episode."""
    simulator = replace(source, episodes=1).simulator([task], stage=1000 + stage)
    physics = simulator.physics  # type: ignore[attr-defined]
    goal = np.array(task.value)[None, None] if source.oracle else np.zeros((1, 1, 0))
    seen, poses = simulator.reset(), []
    for _ in range(source.horizon):
        poses.append(physics.qpos[0, 0].copy())
        actions = policy.act(np.concatenate([seen, goal], -1))
        seen = simulator.step(actions).observations
    return np.stack(poses)


def _rendered(model: Any, poses: np.ndarray) -> np.ndarray | None:
    """Frames [row, frame, high, wide, 3] of poses [row, time, qpos]; None without a way to draw."""
    import mujoco

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npy"
        compiled = Path(folder) / "model.mjb"
        mujoco.mj_saveModel(model, str(compiled), None)
        np.savez(given, poses=poses[:, ::EVERY])
        named = os.environ.get("MUJOCO_GL")
        for way in (named,) if named else WAYS:
            command = [
                sys.executable,
                "-m",
                "maml_dist.reporting.video",
                *map(str, (compiled, given, made)),
            ]
            done = subprocess.run(
                command, env={**os.environ, "MUJOCO_GL": way}, capture_output=True
            )
            if done.returncode == 0:
                frames: np.ndarray = np.load(made)
                return frames
    return None


def _draw(compiled: str, given: str, made: str) -> None:
    """In a process of its own."""
    import mujoco

    model = mujoco.MjModel.from_binary_path(compiled)
    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    camera.distance, camera.elevation, camera.azimuth = 2.6, -12.0, 90.0
    frames = []
    with mujoco.Renderer(model, HIGH, WIDE) as renderer:
        for row in np.load(given)["poses"]:
            for pose in row:
                data.qpos[:] = pose
                mujoco.mj_forward(model, data)
                camera.lookat[:] = data.qpos[0], 0.0, 0.4
                renderer.update_scene(data, camera)
                frames.append(renderer.render())
    pixels = np.stack(frames)
    np.save(made, pixels.reshape(-1, len(row), *pixels.shape[1:]))


def _strip(names: Sequence[str], frames: np.ndarray, places: np.ndarray) -> Figure:
    """The rows, a few frames each, and how far along x [row, frame] the body is."""
    figure = Figure((FRAMES * 1.7, len(names) * 1.2), layout="constrained")
    chosen = np.linspace(0, frames.shape[1] - 1, FRAMES).astype(int)
    grid = figure.subplots(len(names), FRAMES, squeeze=False)
    for name, row, x, axes in zip(names, frames, places, grid, strict=True):
        for place, (index, each) in enumerate(zip(chosen, axes, strict=True)):
            each.imshow(row[index])
            each.set_axis_off()
            label = name if not place else ""
            each.set_title(label, fontsize=8, loc="left")
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            each.text(
                WIDE - 8, HIGH - 10, f"x = {x[index]:z.1f} m", fontsize=7, ha="right", bbox=box
            )
    return figure


def _gif(frames: np.ndarray, file: Path) -> None:
    """All rows below each other, moving."""
    from PIL import Image

    images = [Image.fromarray(np.concatenate(list(moment))) for moment in frames.swapaxes(0, 1)]
    gif = io.BytesIO()
    images[0].save(gif, "GIF", save_all=True, append_images=images[1:], duration=40, loop=0)
    replace_file(file, gif.getvalue())


if __name__ == "__main__":
    torch.set_num_threads(1)
    _draw(*sys.argv[1:])
