"""Episodes drawn from their seeds, and the ring that holds them ready."""

import numpy as np
import torch

from robopolicy.sim.episodes import EpisodePool, Instructions, Sentences, draw, turns
from robopolicy.sim.randomization import Randomization
from robopolicy.sim.scene import build_scene
from robopolicy.sim.tasks import make_task

TASK, SCENE = make_task("place"), build_scene(("cubes", "plates"))


def drawn(seeds, sentences=None):
    changes = Randomization(friction=0.2)
    return draw(TASK, SCENE, seeds, sentences or Sentences(), changes).on(torch.device("cpu"))


def test_an_episode_is_the_same_among_others_and_alone():
    """Guards against: a seed whose scene depends on what is drawn with it."""
    sentences = Sentences()
    many, one = drawn([4, 5, 6], sentences), drawn([6], sentences)
    for name in ("seed", "qpos", "mocap_pos", "goals", "sentence", "delay"):
        assert torch.equal(getattr(many, name)[2:], getattr(one, name)), name
    assert torch.equal(many.fields["geom_friction"][2:], one.fields["geom_friction"])
    assert len(many) == 3


def test_worlds_take_their_turn_in_order():
    """Guards against: two worlds with one episode, or an episode with none."""
    mask = np.array([True, False, True, True])
    assert (turns(mask, 5)[mask] == [5, 6, 7]).all()
    assert torch.equal(
        turns(torch.from_numpy(mask), torch.tensor([5]))[torch.from_numpy(mask)], torch.tensor([5, 6, 7])
    )


def test_the_ring_never_gives_an_episode_twice():
    """Guards against: the same scene again and again, which would be learned by heart."""
    pool = EpisodePool(drawn, np.random.default_rng(0), 3)
    rng, seeds = np.random.default_rng(1), []
    for _ in range(40):
        mask = torch.from_numpy(rng.random(3) < 0.7)
        rows = pool.take(mask)
        seeds += pool.episodes.seed[rows][mask].tolist()
        qpos = pool.episodes.qpos[rows][mask]
        if len(qpos):
            assert torch.equal(qpos[:1], drawn(seeds[-len(qpos) :][:1]).qpos)
    assert len(seeds) == len(set(seeds)) > 60


def test_instructions_are_words_when_they_are_looked_at():
    """Guards against: an instruction that is read later and has changed meanwhile."""
    sentences = Sentences()
    ids = torch.tensor([sentences.number(each) for each in ("b", "a", "b")])
    told = Instructions(ids, sentences.texts)
    assert list(told) == ["b", "a", "b"]
    assert told[1:] == ["a", "b"]
    assert told[-1] == "b"
    assert len(told) == 3


def test_the_seeds_of_a_task_depend_on_its_name_alone(monkeypatch):
    """Guards against: other scenes for every seed because somebody added a task."""
    before = draw(TASK, SCENE, [3], Sentences(), Randomization()).qpos
    monkeypatch.setattr("robopolicy.components.kinds", lambda family: ("another", "place"))
    np.testing.assert_array_equal(draw(TASK, SCENE, [3], Sentences(), Randomization()).qpos, before)
    other = draw(make_task("stack"), build_scene(("cubes",)), [3], Sentences(), Randomization())
    assert not np.allclose(other.qpos[0, :7], before[0, :7])
