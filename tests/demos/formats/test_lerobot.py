"""LeRobot data sets as others wrote them."""

import json
import os

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from robopolicy.demos.check import check_file, salvage
from robopolicy.demos.formats import action_spec_of, open_demos
from robopolicy.types import DemoFormatError
from tests.demo_samples import LENGTHS, images, write_lerobot

VIDEO_TOLERANCE = 6.0
"""Mean absolute difference of a channel value after H.264 at crf 10 and half the color resolution."""


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_both_layouts_give_the_same_episodes(tmp_path, version):
    """Guards against: a neighboring episode's rows, since v3.0 keeps many episodes in one table and one video."""
    with open_demos(write_lerobot(tmp_path / "set", version)) as demos:
        assert demos.format_name == "lerobot"
        assert list(demos.names) == ["demo_0", "demo_1", "demo_2"]
        for index, name in enumerate(demos.names):
            demo, rng = demos.read(name), np.random.default_rng(index)
            np.testing.assert_array_equal(demo.actions, rng.normal(size=(LENGTHS[index], 5)).astype(np.float32))
            np.testing.assert_array_equal(demo.obs["state"], rng.normal(size=(LENGTHS[index], 5)).astype(np.float32))
            assert demo.instruction == ("pick the cube", "wipe the table")[index % 2]
            expected = images(LENGTHS[index], seed=index).astype(int)
            assert np.abs(demo.obs["top"] - expected).mean() < VIDEO_TOLERANCE
            bar = demo.obs["top"].astype(int).mean(axis=(2, 3)).argmax(axis=1)
            assert bar.tolist() == list(range(LENGTHS[index])), "each frame is that of its own step"


def test_the_action_spec_is_read_from_names_and_rate(tmp_path):
    """Guards against: absolute targets and a continuous gripper not recognized by LeRobot's joint names."""
    with open_demos(write_lerobot(tmp_path / "set")) as demos:
        spec = action_spec_of(demos)
    assert (spec.rate_hz, spec.kind, spec.space, tuple(spec.continuous_gripper)) == (
        10.0,
        "absolute",
        "joint_position",
        (4,),
    )


def test_only_the_keys_asked_for_are_read(tmp_path):
    """Guards against: videos decoded only to read the actions, which takes minutes."""
    folder = write_lerobot(tmp_path / "set")
    (folder / "videos/observation.images.top/chunk-000/file-000.mp4").unlink()
    with open_demos(folder) as demos:
        assert set(demos.read("demo_0", keys=("state",)).obs) == {"state"}
        with pytest.raises(DemoFormatError, match=r"file-000.mp4"):
            demos.read("demo_0")
        with pytest.raises(DemoFormatError, match=r"no wrist among the observations; it has: state, top"):
            demos.read("demo_0", keys=("wrist",))


def test_a_video_with_too_few_frames_is_refused(tmp_path):
    """Guards against: fewer images than steps, which would shift or repeat the rest."""
    folder = write_lerobot(tmp_path / "set")
    episodes = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(episodes).to_pylist()
    table[2]["videos/observation.images.top/from_timestamp"] += 0.3
    pq.write_table(pq.read_table(episodes).from_pylist(table), episodes)
    with (
        open_demos(folder) as demos,
        pytest.raises(DemoFormatError, match=r"4 frames from 1.800 s on; the episode has 7"),
    ):
        demos.read("demo_2")


def test_paths_that_lead_out_of_the_data_set_are_refused(tmp_path):
    """Guards against: an info.json from a stranger that names any file on this machine."""
    folder = write_lerobot(tmp_path / "set", "v2.1")
    info = json.loads((folder / "meta/info.json").read_text())
    info["data_path"] = "../../secret_{episode_index}.parquet"
    (folder / "meta/info.json").write_text(json.dumps(info))
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match="leads out of the data set; refused"):
        demos.read("demo_0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "codebase_version v1.6; expected v2.1 or v3.0"),
        ({"features": {}}, "no feature action"),
        ({"fps": None}, "no fps; expected a LeRobot data set"),
        ({"fps": "fast"}, "fps is 'fast'; expected a number"),
        ({"features": {"action": []}}, "expected an object of objects"),
        ({"splits": {"train": "all", "val": "none"}}, "set/meta: damaged"),
    ],
)
def test_what_can_t_be_read_is_refused_in_one_line(tmp_path, change, message):
    """Guards against: a traceback from inside pyarrow, which says nothing to the user."""
    folder = write_lerobot(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text()) | change
    (folder / "meta/info.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    with pytest.raises(DemoFormatError, match=message):
        open_demos(folder)


def test_splits_become_filter_keys(tmp_path):
    """Guards against: episodes that their maker held out, which would be trained on."""
    folder = write_lerobot(tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    info["splits"] = {"train": "0:2", "val": "2:3"}
    (folder / "meta/info.json").write_text(json.dumps(info))
    with open_demos(folder) as demos:
        assert demos.filter_keys == {"train": ["demo_0", "demo_1"], "valid": ["demo_2"]}


def cut(path, share=0.5):
    """Leave the first part of a file, as a recorder does that is ended in the middle."""
    os.truncate(path, int(path.stat().st_size * share))


def split_episodes(folder):
    """List the last episode in a second file of `meta/episodes`, and its rows in a second table."""
    for kind in ("meta/episodes", "data"):
        first = folder / kind / "chunk-000/file-000.parquet"
        table = pq.read_table(first)
        last = table.column("episode_index").to_numpy() == len(LENGTHS) - 1
        rows = table.filter(last).to_pylist()
        for row in rows if kind == "meta/episodes" else ():
            row["data/file_index"] = 1
        pq.write_table(table.from_pylist(rows, schema=table.schema), first.with_name("file-001.parquet"))
        pq.write_table(table.filter(~last), first)


def test_what_a_recording_without_footers_finished_is_read(tmp_path):
    """Guards against: all episodes lost because the recorder ended before it wrote the footer of its last file."""
    folder = write_lerobot(tmp_path / "set")
    split_episodes(folder)
    data, episodes = (folder / kind / "chunk-000/file-001.parquet" for kind in ("data", "meta/episodes"))
    cut(data)
    with open_demos(folder) as demos:
        assert len(demos.read("demo_1")) == LENGTHS[1]
        with pytest.raises(DemoFormatError, match=r"^file-001.parquet: cut off: no footer"):
            demos.read("demo_2")
    cut(episodes)
    with open_demos(folder) as demos:
        assert list(demos.names) == ["demo_0", "demo_1"]
        assert demos.notes[0].endswith("its rows can't be read; the episodes it lists are left out")
    cut(episodes.with_name("file-000.parquet"))
    with pytest.raises(DemoFormatError, match=r"set/meta/episodes: file-000.parquet: cut off: no footer") as caught:
        open_demos(folder)
    assert "\n" not in str(caught.value)


def test_the_episodes_before_the_cut_of_a_video_are_salvaged(tmp_path):
    """Guards against: a video cut off by a full disk that takes the episodes before the cut with it, or repeats frames."""
    folder = write_lerobot(tmp_path / "set")
    video = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    whole = video.with_name("whole.mp4")
    with av.open(str(video)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole.replace(video)
    cut(video, 0.9)
    report = check_file(folder)
    assert report.good == ["demo_0", "demo_1"]
    (problem,) = report.problems
    assert (problem.demo, "file-000.mp4: " in problem.text) == ("demo_2", True)
    salvage(report, tmp_path / "good.hdf5")
    with open_demos(tmp_path / "good.hdf5") as demos:
        assert [len(demos.read(name)) for name in demos.names] == list(LENGTHS[:2])
    cut(video, 0.01)  # its index is gone too
    with open_demos(folder) as demos, pytest.raises(DemoFormatError, match=r"file-000.mp4: can't be read as video"):
        demos.read("demo_0")
