"""One process is one shard; two are tested through the verbs, in cli/."""

from robopolicy.sim.evaluation import Shard, open_shard


def test_every_seed_belongs_to_one_shard():
    """Guards against: seeds run twice or never, which would bend a rate without a trace."""
    seeds = range(100, 111)
    parts = [Shard(rank, 3).part(seeds) for rank in range(3)]
    assert sorted(seed for part in parts for seed in part) == list(seeds)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_needs_no_network(monkeypatch):
    """Guards against: an evaluation that waits for processes that were never started."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_shard() as shard:
        assert shard.first
        assert shard.gather("mine") == ["mine"]
        assert shard.broadcast(3) == 3
        assert shard.device("cuda") == "cuda"


def test_each_process_takes_its_own_gpu():
    """Guards against: all processes on the first GPU, which would be slower than one."""
    assert Shard(5, 8, local_rank=1).device("cuda") == "cuda:1"
    assert Shard(5, 8, local_rank=1).device("cuda:3") == "cuda:3"
    assert Shard(5, 8, local_rank=1).device("cpu") == "cpu"
