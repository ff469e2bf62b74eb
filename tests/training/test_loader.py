"""The order of batches: complete, disjoint between processes, the same for any workers, resumable anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer

from robopolicy.demos.hdf5 import DemoFile
from robopolicy.demos.rows import DemoRows, load_rows
from robopolicy.demos.store import DemoStore
from robopolicy.training.loader import BatchLoader, Carried, InOrder, Shuffled, episode_streams


@pytest.fixture
def rows(demo_file: DemoFile) -> DemoRows:
    return load_rows([(demo_file, demo_file.names)], ("gripper",))


@pytest.fixture
def store(rows: DemoRows) -> DemoStore:
    return DemoStore(rows, segment=3, chunk=2)


def test_every_step_starts_one_segment_an_epoch_in_another_order_each_time(rows):
    """Guards against: a shuffle that repeats, or that leaves steps out."""
    order = Shuffled(rows, batch_size=9, seed=3)
    first, second = order.epoch(0)[0], order.epoch(1)[0]
    assert first.shape == (order.length, 9) == (6, 9)
    assert sorted(first.flatten().tolist()) == list(range(rows.steps))
    assert not torch.equal(first, second)
    assert torch.equal(first, Shuffled(rows, batch_size=9, seed=3).epoch(0)[0])
    assert not torch.equal(first, Shuffled(rows, batch_size=9, seed=4).epoch(0)[0])


def test_a_share_of_the_segments_begins_at_a_first_step(rows):
    """Guards against: a cue at the start of an episode that is in one segment of twenty only."""
    firsts = set(rows.offsets[:-1].tolist())
    drawn = torch.cat(
        [Shuffled(rows, 9, seed=3, first_step_share=0.5).epoch(number)[0].flatten() for number in range(20)]
    )
    share = np.mean([start in firsts for start in drawn.tolist()])
    natural = len(firsts) / rows.steps
    assert share == pytest.approx(0.5 + 0.5 * natural, abs=0.05)
    always = Shuffled(rows, 9, seed=3, first_step_share=1.0).epoch(0)[0]
    assert set(always.flatten().tolist()) == firsts


def test_fewer_steps_than_a_batch_still_fill_it(rows):
    """Guards against: an empty epoch for five short demos and a batch of 100."""
    starts = Shuffled(rows, batch_size=100, seed=0).epoch(0)[0]
    assert starts.shape == (1, 100)
    assert set(starts.flatten().tolist()) == set(range(rows.steps))


def test_file_weights_decide_how_often_each_file_is_drawn_from(tiny_demos):
    """Guards against: a small set of corrections, which would drown in a large one, weight or no weight."""
    with DemoFile(tiny_demos) as one, DemoFile(tiny_demos) as other:
        rows = load_rows([(one, ["demo_3"]), (other, ["demo_0", "demo_1", "demo_2"])], ("gripper",))
    order = Shuffled(rows, batch_size=40, seed=0, source_weights=(3.0, 1.0))
    drawn = torch.cat([order.epoch(number)[0].flatten() for number in range(40)])
    share = (drawn < 7).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.05)
    assert set(drawn.tolist()) == set(range(rows.steps))


def test_validation_covers_every_step_once_and_fills_up_with_nothing(rows):
    """Guards against: a last batch of another size, which recompiles, or a dropped one, which biases the validation loss."""
    starts = InOrder(rows, batch_size=10).epoch(0)[0]
    assert starts.shape == (6, 10)
    assert starts.flatten().tolist() == [*range(54), *[-1] * 6]
    few = InOrder(rows, batch_size=10, limit=6).epoch(0)[0]
    assert few.flatten().tolist() == [0, 9, 18, 27, 36, 45, -1, -1, -1, -1]


def test_carried_segments_follow_one_another(rows, store):
    """Guards against: a state carried across a gap or into another demo."""
    order = Carried(rows, batch_size=2, segment=3, seed=0)
    loader = BatchLoader(store, order)
    seen = np.zeros(rows.steps, dtype=int)
    for batch, starts in zip(loader, order.epoch(0)[0], strict=True):
        assert batch.episode_start is not None
        for lane, start in enumerate(starts.tolist()):
            assert batch.frame_valid[lane].any() == (start >= 0)
            seen[start : start + int(batch.frame_valid[lane].sum())] += 1
            assert batch.episode_start[lane] == (start < 0 or start in rows.offsets)
    assert (seen == 1).all()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_batch_without_overlap(store, processes):
    """Guards against: processes that draw the same segments and train on a smaller batch than they claim."""
    order = Shuffled(store.rows, batch_size=6, seed=1)
    whole = [batch.target for batch in BatchLoader(store, order)]
    parts = zip(*(BatchLoader(store, order, rank, processes) for rank in range(processes)), strict=True)
    for expected, shares in zip(whole, parts, strict=True):
        assert torch.equal(expected, torch.cat([share.target for share in shares]))


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_from_disk_by_any_number_of_threads_changes_nothing(tiny_demos, threads):
    """Guards against: a shuffle that depends on the number of workers, and can't be reproduced elsewhere."""
    with DemoFile(tiny_demos) as file:
        loaders = []
        for placement in ("device", "disk"):
            rows = load_rows([(file, file.names)], ("front",), placement=placement, threads=threads)
            loaders.append(BatchLoader(DemoStore(rows, segment=3, chunk=2), Shuffled(rows, 8, seed=2)))
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one.obs["front"], other.obs["front"])
            assert torch.equal(one.target, other.target)


def test_an_error_while_reading_ahead_reaches_the_training(tiny_demos, monkeypatch):
    """Guards against: an exception lost in a thread, by which a training waits forever."""
    with DemoFile(tiny_demos) as file:
        rows = load_rows([(file, file.names)], ("front",), placement="disk")
        store = DemoStore(rows, segment=3, chunk=2)
        batches = iter(BatchLoader(store, Shuffled(rows, 8, seed=2)))
        next(batches)
        monkeypatch.setattr(store, "gather", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(batches)


def test_another_data_set_is_not_resumed(rows, store):
    """Guards against: positions of another set of demos, which would silently be taken as positions in this one."""
    state = BatchLoader(store, Shuffled(rows, 6, seed=1)).state_dict()
    with pytest.raises(
        ValueError, match="54 steps of demos and 9 batches an epoch; these demos and batch size give 54 and 6"
    ):
        BatchLoader(store, Shuffled(rows, 9, seed=1)).load_state_dict(state)


class Watcher(LightningModule):
    """Notes the batches it is shown; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []

    def training_step(self, batch, _):
        """Note it."""
        self.seen.append(batch.target.flatten().tolist())
        return self.weight.sum()

    def transfer_batch_to_device(self, batch, device, _):
        """As it is."""
        return batch

    def configure_optimizers(self):
        """One that changes nothing."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveAt(Callback):
    """Saves a resume file after a step."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        """Save, if this is the step."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("carried", [False, True])
def test_a_run_resumed_at_any_step_sees_exactly_the_batches_it_would_have(store, tmp_path, carried):
    """Guards against: a resume that restarts the epoch, or skips a batch at its border."""

    def fit(steps, *callbacks, resume=None):
        order = Carried(store.rows, 2, 3, seed=5) if carried else Shuffled(store.rows, 9, seed=5)
        watcher = Watcher()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        trainer.fit(watcher, BatchLoader(store, order), ckpt_path=resume, weights_only=True if resume else None)
        return watcher.seen

    epoch = Carried(store.rows, 2, 3, seed=5).length if carried else 6
    total = 2 * epoch + 2
    paths = [str(tmp_path / f"{step}.ckpt") for step in range(1, total)]
    whole = fit(total, *(SaveAt(step, path) for step, path in enumerate(paths, start=1)))
    assert len(whole) == total
    for step, path in enumerate(paths, start=1):
        if step in (1, 2, epoch - 1, epoch, epoch + 1, 2 * epoch):
            assert fit(total, resume=path) == whole[step:], f"resumed after step {step}"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.randoms(),
)
def test_streams_hold_every_demo_once_whole_and_in_order(lengths, count, segment, stride, random):
    """Guards against: a carried state that runs from the middle of one demo into another."""
    order = list(range(len(lengths)))
    random.shuffle(order)
    starts, begins = episode_streams(np.array(lengths), order, count, segment, stride)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    seen = []
    for stream in range(count):
        current = None
        for start, begin in zip(starts[:, stream].tolist(), begins[:, stream].tolist(), strict=True):
            if start < 0:
                assert begin, "a stream without a demo starts from scratch"
                continue
            demo = int(np.searchsorted(offsets, start, side="right")) - 1
            if begin:
                assert start == offsets[demo]
                seen.append(demo)
            else:
                assert start == current
            current = start + segment * stride
        ends = [row for row in starts[:, stream].tolist() if row >= 0]
        assert starts[: len(ends), stream].tolist() == ends, "a stream that has run out stays empty"
    assert sorted(seen) == list(range(len(lengths)))
    covered = sum(-(-length // (segment * stride)) for length in lengths)
    assert int((starts >= 0).sum()) == covered
