"""Films of bodies: which tasks, how many frames, and one line where nothing can draw."""

import numpy as np
import pytest
from PIL import Image

import maml_dist
from maml_dist.reporting import video
from maml_dist.reporting.plotting import STYLES, PlottedRun
from maml_dist.runs.run import Run

SMALL = {"iterations": 0, "test_tasks": 2, "test_steps": 1, "episodes": 2, "horizon": 9}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cheetah"
    small = {**SMALL, "local": True, "progress": False, "engine.running": "eager"}
    run = Run.open(maml_dist.meta_train("half-cheetah-direction", run=folder, **small).path)
    return [PlottedRun("cheetah", run, maml_dist.meta_test(run), *STYLES[0])]


def test_a_film_shows_both_directions_before_and_after(drawn, monkeypatch):
    given = []

    def rendered(model, poses):
        given.append(poses)
        shape = (*poses[:, :: video.EVERY].shape[:2], video.HIGH, video.WIDE, 3)
        return np.random.default_rng(0).integers(255, size=shape, dtype=np.uint8)

    monkeypatch.setattr(video, "_rendered", rendered)
    (drawn[0].run.path / "figures").mkdir()
    picture = video.video(drawn)
    (poses,) = given
    assert poses.shape == (4, 9, 9)  # two tasks before and after, time, qpos
    assert not np.array_equal(poses[0], poses[1]) and not np.array_equal(poses[0], poses[2])
    said = " ".join(
        text.get_text() for text in picture.figure.findobj() if hasattr(text, "get_text")
    )
    for goal in ("+1", "-1"):
        assert f"goal {goal}: before" in said and f"goal {goal}: after 1 steps" in said
    with Image.open(drawn[0].run.path / "figures" / "film.gif") as film:
        assert film.n_frames == 3  # every fourth of nine


def test_where_nothing_can_draw_that_is_said_and_no_film_made(drawn, monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    assert video.video(drawn) is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("no film: MuJoCo finds no way to draw here")
