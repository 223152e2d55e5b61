"""Spaces: what a policy sees is Gymnasium's own flattening, what it does is in the space."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Text,
    Tuple,
    flatdim,
    flatten,
)

from maml_dist.tasks.gym_spaces import (
    action_form,
    flatten_observation,
    observation_size,
    scale_action,
)

SEEN = [
    Box(-1, 1, (3,)),
    Box(-1, 1, (2, 3), np.float64),
    Box(0, 255, (5,), np.uint8),  # no picture
    Discrete(4, start=-1),
    MultiDiscrete([2, 3], start=[1, 0]),
    MultiBinary([2, 2]),
    Dict({"b": Discrete(2), "a": Tuple((Box(0, 1), MultiBinary(3)))}),
    Tuple((Dict({"deep": Dict({"deeper": Discrete(5)})}), Box(0, 1, ()))),
]
ACTED = [
    Box(-3, 1, (2,)),
    Discrete(3, start=7),
    MultiDiscrete([[2, 5], [3, 2]]),
    MultiDiscrete([2, 3], start=[4, -1]),
    MultiBinary([2, 2]),
    Dict({"hand": Discrete(2), "go": MultiDiscrete([3, 3]), "on": MultiBinary(2)}),
    Tuple((Box(-1, 1, (2,)), Dict({"x": Box(0, 4, (1, 2))}))),
]


@pytest.mark.parametrize("space", SEEN, ids=str)
def test_observations_are_gymnasiums_own_flattening(space):
    space.seed(0)
    for _ in range(20):
        seen = space.sample()
        expected = np.asarray(flatten(space, seen), np.float64)
        assert np.array_equal(flatten_observation(seen, space), expected)
    assert observation_size(space) == flatdim(space)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5)])
def test_pictures_are_scaled_wherever_they_are(shape):
    picture = Box(0, 255, shape, np.uint8)
    space = Dict({"eye": picture, "speed": Box(0, 255, (2,), np.uint8)})
    seen = {"eye": np.full(shape, 51, np.uint8), "speed": np.array([51, 255], np.uint8)}
    size = int(np.prod(shape))
    assert flatten_observation(seen, space).tolist() == [0.2] * size + [51, 255]
    assert flatten_observation(seen, space, image_scale=1)[0] == 51


def test_texts_of_any_length_are_one_hot_with_a_mark_for_none():
    space = Text(3, min_length=0, charset="ab")
    kinds = space.character_index("a"), space.character_index("b"), 2
    for text in ("", "a", "ba", "abb"):
        rows = flatten_observation(text, space).reshape(3, 3)
        assert (rows.sum(1) == 1).all()
        padded = ["ab".index(letter) for letter in text] + [2] * (3 - len(text))
        assert rows.argmax(1).tolist() == [kinds[at] for at in padded]
    assert observation_size(space) == 9


class Mission(Space):
    """A space of somebody's own, as MiniGrid's."""

    def __init__(self):
        super().__init__(dtype=str)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Graph(Box(0, 1, (2,)), None), "the space of its observation is Graph.*must be Box, Disc"),
        (Dict({"a": Discrete(2), "list": Sequence(Discrete(2))}), r"observation\['list'\] is Sequ"),
        (Tuple((Discrete(2), Dict({"mission": Mission()}))), r"\[1\]\['mission'\].*leave it out"),
    ],
)
def test_spaces_without_a_size_are_refused_by_their_place(space, said):
    with pytest.raises(ValueError, match=said):
        observation_size(space)


@pytest.mark.parametrize(
    ("space", "seen", "said"),
    [
        (Discrete(3), -1, r"the observation is -1, which is not in Discrete\(3\)"),
        (Discrete(3), 1.0, "is 1.0, which is not in"),
        (MultiDiscrete([2, 2]), np.array([0, 2]), "which is not in MultiDiscrete"),
        (Text(3, charset="ab"), "abba", "is 'abba', which is not in Text"),
        (Text(3, charset="ab"), "c", "is 'c', which is not in Text"),
        (Dict({"a": Discrete(2)}), {"b": 1}, "which is not in Dict"),
        (Dict({"a": Discrete(2)}), 1, "which is not in Dict"),
        (Dict({"a": Discrete(2)}), {"a": 2}, r"the observation\['a'\] is 2, which"),
        (Tuple((Discrete(2), Discrete(2))), (1,), "which is not in Tuple"),
        (Box(0, 1, (2,)), [0.5], r"the observation's shape is \(1,\), not \(2,\)"),
        (Box(0, 1, (2,)), ["a", "b"], "must be numbers"),
    ],
)
def test_observations_out_of_their_space_are_refused(space, seen, said):
    with pytest.raises(ValueError, match=said):
        flatten_observation(seen, space)


def test_bounds_may_be_left():
    assert flatten_observation([7.0, -9.0], Box(0, 1, (2,))).tolist() == [7, -9]


@pytest.mark.parametrize("space", ACTED, ids=str)
def test_actions_are_in_the_space(space):
    size, discrete, choices = action_form(space)
    rng = np.random.default_rng(0)
    for _ in range(50):
        if discrete:
            drawn = rng.integers(choices or [size]).reshape(-1 if choices else ())
        else:
            drawn = 3 * rng.standard_normal(size)
        action = scale_action(drawn, space)
        assert space.contains(action)
        if discrete:  # unflattened, one-hot, it is what was drawn
            hot = np.asarray(flatten(space, action), float)
            if isinstance(space, MultiBinary):
                assert hot.tolist() == drawn.tolist()
            elif not isinstance(space, Dict):
                ends = np.cumsum(choices or [size])[:-1]
                each = [part.argmax() for part in np.split(hot, ends)]
                assert each == np.atleast_1d(drawn).tolist()


def test_the_parts_of_an_action_are_taken_in_order():
    space = Dict({"b": Discrete(3, start=5), "a": MultiDiscrete([4, 4]), "c": MultiBinary(2)})
    assert action_form(space) == (4 + 4 + 3 + 2 + 2, True, (4, 4, 3, 2, 2))  # a Dict is sorted
    action = scale_action(np.array([3, 1, 2, 0, 1]), space)
    assert action["a"].tolist() == [3, 1] and action["b"] == 7 and action["c"].tolist() == [0, 1]
    both = Tuple((Box(0, 4, (1,)), Box(-np.inf, np.inf, (2,))))
    first, second = scale_action(np.array([0.5, 7.0, -8.0]), both)
    assert first.tolist() == [3.0] and second.tolist() == [7.0, -8.0]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Dict({"hand": Discrete(2), "arm": Box(0, 1)}), "must be all Box, or all Discrete"),
        (Text(3), "the space of its action is Text.*must be Box, Discrete, MultiDiscrete, MultiB"),
        (Dict({}), "must be all Box"),
        (Sequence(Discrete(2)), "the space of its action is Sequence"),
    ],
)
def test_actions_that_no_policy_gives_are_refused(space, said):
    with pytest.raises(ValueError, match=said):
        action_form(space)


def test_gymnasiums_own_environments_fit():
    for name in ("CartPole-v1", "Taxi-v4", "Blackjack-v1", "Pendulum-v1"):
        env = gymnasium.make(name)
        seen, _ = env.reset(seed=0)
        flat = flatten_observation(seen, env.observation_space)
        assert flat.shape == (observation_size(env.observation_space),)
        form = action_form(env.action_space)
        action = scale_action(np.zeros(() if form.discrete else form.size, int), env.action_space)
        assert env.action_space.contains(action)
