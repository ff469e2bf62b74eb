"""Five instructions in a row."""

import numpy as np
import pytest

from robopolicy.sim.env import RobotVectorEnv
from robopolicy.sim.tasks import make_task
from robopolicy.sim.tasks.chain import LIFT, PLACE, REACH, STACK, draw_goals


@pytest.mark.parametrize("seed", range(20))
def test_each_goal_can_be_followed_when_its_turn_comes(seed):
    """Guards against: an instruction that names an occupied plate or a buried cube, which would make the chain impossible."""
    below: dict[int, tuple[str, int]] = {}
    held = None
    for kind, cube, other in draw_goals(np.random.default_rng(seed), 8):
        assert ("cube", cube) not in below.values()
        assert held in (None, cube)
        held = cube if kind == LIFT else None
        if kind == PLACE:
            assert ("plate", other) not in below.values()
        if kind == STACK:
            assert other != cube
            assert ("cube", other) not in below.values()
            assert below.get(other, ("table", 0))[0] != "cube"
        if kind != REACH:
            below.pop(cube, None)
        if kind in (PLACE, STACK):
            below[cube] = ({PLACE: "plate", STACK: "cube"}[kind], other)


def test_all_kinds_of_instructions_occur():
    """Guards against: a chain of touches, which would be no measure."""
    kinds = [kind for seed in range(30) for kind, _, _ in draw_goals(np.random.default_rng(seed), 5)]
    counts = np.bincount(kinds, minlength=4)
    assert counts.min() > 15


def test_the_next_instruction_comes_when_the_last_is_solved():
    """Guards against: a policy that gets the old instruction for ever and can't continue."""
    env = RobotVectorEnv("chain", 2)
    _, info = env.reset(seed=0)
    (first, second, *_), (other, *_) = (
        [env.sentences.texts[number] for number in row] for row in env.draw([0, 1]).sentence
    )
    assert tuple(info["instruction"]) == (first, other)
    env.task.reached = lambda state: np.array([True, False])  # type: ignore[method-assign]
    env.task.required_hold = lambda state: np.array([1, 1])  # type: ignore[method-assign]
    _, _, terminated, _, info = env.step(np.zeros((2, 7)))
    assert info["instruction"][0] == second
    assert info["instruction"][1] == other
    assert info["solved"].tolist() == [1, 0]
    for _ in range(4):
        _, _, terminated, _, info = env.step(np.zeros((2, 7)))
    assert info["solved"].tolist() == [5, 0]
    assert terminated.tolist() == info["success"].tolist() == [True, False]


def test_length_is_an_option():
    """Guards against: a chain whose length can't be shortened for a trial."""
    assert RobotVectorEnv("chain", 1, task_options={"length": 2}).draw([0]).sentence.shape == (1, 2)
    with pytest.raises(ValueError, match=r"--task\.length must be >= 1, got 0"):
        make_task("chain", length=0)
