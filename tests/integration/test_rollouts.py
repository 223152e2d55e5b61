"""Policy search on Ray and in this process, undisturbed and disturbed: the same weights."""

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runtime.launch import OnRay

pytestmark = pytest.mark.ray

SMALL = {"iterations": 3, "meta_batch": 6, "checkpoint_every": 1, "validation_tasks": 4}
SMALL |= {"test_steps": 2, "task.episodes": 4, "task.horizon": 10, "progress": False, "seed": 3}
EVOLVED = {**SMALL, "iterations": 2, "num_perturbations": 3, "num_inner_perturbations": 2}
EVOLVED |= {"hidden": [9]}


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    return {
        shards: weights(
            maml_dist.meta_train(
                "navigation", run=folder / str(shards), shards=shards, local=True, **SMALL
            )
        )
        for shards in (1, 2)
    }


@pytest.fixture(scope="module")
def evolved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolved")
    return weights(maml_dist.meta_train("navigation-es", run=folder / "run", local=True, **EVOLVED))


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 3)])
def test_evolution_spreads_its_candidates_to_the_same_bits(
    tmp_path, ray_here, evolved, shards, workers
):
    run = maml_dist.meta_train(
        "navigation-es", run=tmp_path / "run", shards=shards, rollout_workers=workers, **EVOLVED
    )
    assert np.array_equal(weights(run), evolved)


def test_evolution_in_few_environments_killed_and_resumed_gives_the_same_bits(tmp_path, evolved):
    some = {**EVOLVED, "iterations": 1, "environments": 5}
    run = maml_dist.meta_train("navigation-es", run=tmp_path / "run", local=True, **some)
    run = maml_dist.meta_train(resume=run.path, iterations=2, local=True, progress=False)
    assert np.array_equal(weights(run), evolved)


def test_any_number_of_shards_agrees_to_rounding(tmp_path):
    """In float64, and with few products: conjugate gradient magnifies rounding."""
    found = [
        weights(
            maml_dist.meta_train(
                "navigation",
                run=tmp_path / str(shards),
                shards=shards,
                local=True,
                **SMALL,
                **{"engine.precision": "float64", "outer.iterations": 3},
            )
        )
        for shards in (1, 3)
    ]
    assert np.linalg.norm(found[1] - found[0]) <= 1e-5 * np.linalg.norm(found[0])


@pytest.mark.parametrize(("shards", "workers"), [(2, 0), (1, 1), (1, 3)])
def test_ray_and_this_process_give_the_same_bits(tmp_path, ray_here, local, shards, workers):
    run = maml_dist.meta_train(
        "navigation", run=tmp_path / "run", shards=shards, rollout_workers=workers, **SMALL
    )
    assert np.array_equal(weights(run), local[shards])


def test_few_environments_at_once_change_nothing(tmp_path, local):
    run = maml_dist.meta_train(
        "navigation", run=tmp_path / "run", shards=1, local=True, environments=4, **SMALL
    )
    assert np.array_equal(weights(run), local[1])


def test_a_killed_run_ends_with_the_same_bits(tmp_path, local):
    some = {**SMALL, "iterations": 2}
    run = maml_dist.meta_train("navigation", run=tmp_path / "run", shards=1, local=True, **some)
    run = maml_dist.meta_train(resume=run.path, iterations=3, local=True, progress=False)
    assert np.array_equal(weights(run), local[1])


def test_killed_workers_and_shards_change_nothing(tmp_path, ray_here, local, monkeypatch):
    crews = []
    launch = OnRay.crew

    def keep_hold(place, *work, **options):
        crews.append(launch(place, *work, **options))
        return crews[0]

    def kill(row):
        crew = crews[0]
        lost = crew.workers[0] if row["iteration"] == 1 else crew.shards[0]
        ray_here.kill(lost, no_restart=False)

    monkeypatch.setattr(OnRay, "crew", keep_hold)
    run = maml_dist.meta_train(
        "navigation",
        run=tmp_path / "run",
        shards=1,
        rollout_workers=2,
        on_validation=kill,
        ahead=1,
        **SMALL,
    )
    assert np.array_equal(weights(run), local[1])


def test_other_updates_and_surrogates_run(tmp_path):
    adam = {"outer.class_path": "maml_dist.core.outer.Adam"}
    proximal = adam | {"outer.epochs": 3}
    adam = {"outer.class_path": "maml_dist.core.outer.Adam"}
    proximal = adam | {"outer.epochs": 3}
    proximal |= {
        "task.policy_gradient.outer_surrogate": "clipped",
        "task.policy_gradient.penalty": 0.0005,
    }
    for name, settings in (
        ("proximal", {**proximal, "task.policy_gradient.inner_surrogate": "low-variance"}),
        ("plain", adam),
        ("share", {"outer.share": 0.5, "task.policy_gradient.inner_surrogate": "dice"}),
    ):
        run = maml_dist.meta_train(
            "navigation", run=tmp_path / name, local=True, **SMALL, **settings
        )
        start = maml_dist.meta_train(
            "navigation", run=tmp_path / f"{name}-0", local=True, **{**SMALL, "iterations": 0}
        )
        assert np.isfinite(weights(run)).all() and not np.array_equal(weights(run), weights(start))
