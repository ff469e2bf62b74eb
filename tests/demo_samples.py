"""Small files of every demo family, made as the family's own tools make them, without our writers."""

import io
import json
from dataclasses import fields
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import dataset

from robopolicy.types import Demo

LENGTHS = (9, 6, 7)
"""Steps of each demo."""


def images(steps: int, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    """Smooth colorful frames, which survive video and JPEG, with a bright bar that moves one row a step from the top."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack(
        [np.stack([4 * y + 3 * t, 5 * x + seed, 90 + 2 * x - y], axis=-1) % 200 for t in range(steps)]
    ).astype(np.uint8)
    for t in range(steps):
        frames[t, min(t, height - 1)] = 250
    return frames


def write_robomimic(path: Path) -> Path:
    """Robomimic v1: float64, masks, next_obs, robosuite 1.4's env_args; the gripper moves in every demo."""
    controller = {"type": "OSC_POSE", "control_delta": True}
    env_args = {
        "env_name": "Lift",
        "type": 1,
        "env_version": "1.4.1",
        "env_kwargs": {"control_freq": 20, "controller_configs": controller},
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["total"] = sum(LENGTHS)
        for index, steps in enumerate(LENGTHS):
            rng = np.random.default_rng(index)
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
            demo["actions"] = np.c_[rng.uniform(-1, 1, (steps, 6)), np.where(np.arange(steps) < 3, -1.0, 1.0)]
            demo["rewards"], demo["dones"] = np.zeros(steps), np.arange(steps) // (steps - 1)
            demo["states"] = rng.normal(size=(steps, 5))
            for part in ("obs", "next_obs"):
                demo[f"{part}/robot0_eef_pos"] = rng.normal(size=(steps, 3))
                demo[f"{part}/agentview_image"] = images(steps, seed=index)
        file["mask/train"] = np.array([b"demo_0", b"demo_1"])
        file["mask/valid"] = np.array([b"demo_2"])
    return path


def write_robosuite_raw(path: Path) -> Path:
    """Robosuite's demo.hdf5: states and actions only, from demo_1 on."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["env_info"] = "Lift", "{}"
        for index, steps in enumerate(LENGTHS, start=1):
            data[f"demo_{index}/states"] = np.zeros((steps, 5))
            data[f"demo_{index}/actions"] = np.zeros((steps, 7))
    return path


def write_libero(path: Path) -> Path:
    """LIBERO: images upside down, instruction in problem_info, no masks."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Libero_Kitchen", "type": 1, "env_kwargs": {}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": '"open the drawer"'})
        data.attrs["bddl_file_name"], data.attrs["macros_image_convention"] = "task.bddl", "opengl"
        for index, steps in enumerate(LENGTHS):
            rng = np.random.default_rng(index)
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = steps
            demo["actions"] = np.c_[rng.uniform(-1, 1, (steps, 6)), np.where(np.arange(steps) < 4, -1.0, 1.0)]
            demo["dones"], demo["rewards"] = np.zeros(steps, np.uint8), np.zeros(steps, np.uint8)
            demo["robot_states"], demo["states"] = np.zeros((steps, 9)), np.zeros((steps, 5))
            demo["obs/agentview_rgb"] = images(steps, seed=index)[:, ::-1]
            demo["obs/ee_states"], demo["obs/gripper_states"] = rng.normal(size=(steps, 6)), np.zeros((steps, 2))
    return path


def write_act(folder: Path, compressed: bool = False) -> Path:
    """ACT / ALOHA: one file per episode; with `compressed`, JPEG bytes padded to one length beside `compress_len`."""
    folder.mkdir()
    for index, steps in enumerate(LENGTHS):
        rng = np.random.default_rng(index)
        with h5py.File(folder / f"episode_{index}.hdf5", "w") as file:
            file.attrs["sim"] = True
            action = rng.uniform(-2, 2, (steps, 14)).astype(np.float32)
            action[:, [6, 13]] = action[:, [6, 13]].clip(-0.1, 1.2)  # a leader's gripper goes beyond its ends 0 and 1
            file["action"] = action
            for key in ("qpos", "qvel"):
                file[f"observations/{key}"] = rng.normal(size=(steps, 14)).astype(np.float32)
            frames = images(steps, seed=index)
            if not compressed:
                file["observations/images/top"] = frames
                continue
            coded = [jpeg(frame) for frame in frames]
            longest = max(map(len, coded))
            file["observations/images/top"] = np.stack(
                [np.frombuffer(c.ljust(longest, b"\0"), np.uint8) for c in coded]
            )
            file["compress_len"], file.attrs["compress"] = np.array([[len(c) for c in coded]]), True
    return folder


def jpeg(frame: np.ndarray) -> bytes:
    """One image as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_minari(folder: Path) -> Path:
    """Minari: T + 1 observations, nested groups, infos."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        file.attrs["total_episodes"] = len(LENGTHS)
        file.attrs["env_spec"] = json.dumps({"id": "AdroitHandPen-v1", "kwargs": {}})
        for index, steps in enumerate(LENGTHS):
            rng = np.random.default_rng(index)
            episode = file.create_group(f"episode_{index}")
            episode.attrs["id"], episode.attrs["total_steps"], episode.attrs["seed"] = index, steps, 40 + index
            episode["actions"] = rng.uniform(-1, 1, (steps, 28)).astype(np.float32)
            episode["observations/observation"] = rng.normal(size=(steps + 1, 45))
            episode["observations/desired_goal/pen"] = rng.normal(size=(steps + 1, 3))
            episode["rewards"] = rng.normal(size=steps)
            episode["terminations"] = np.zeros(steps, bool)
            episode["truncations"] = np.arange(steps) == steps - 1
            episode["infos/success"] = np.zeros(steps + 1, bool)
    (folder / "data" / "metadata.json").write_text(json.dumps({"dataset_id": "pen/human-v2"}))
    return folder


def write_minari_arrow(folder: Path, kind: str = "arrow") -> Path:
    """Minari's Arrow and Parquet layouts: a table for each episode, T + 1 rows, arrays flat, images as JPEG."""
    box = {"type": "Box", "dtype": "float64", "low": [-float("inf")], "high": [float("inf")]}
    spaces = {
        "pose": {**box, "shape": [3]},
        "goal": {"type": "Dict", "subspaces": {"pen": {**box, "shape": [2, 2]}}},
        "mission": {"type": "Text", "max_length": 40, "min_length": 0, "charset": "abc"},
        "front": {**box, "dtype": "uint8", "shape": [16, 24, 3]},
    }
    (folder / "data").mkdir(parents=True)
    about = {
        "data_format": kind,
        "jpeg_encoding": True,
        "dataset_id": "lab/pen-v0",
        "observation_space": json.dumps({"type": "Dict", "subspaces": spaces}),
        "env_spec": json.dumps({"id": "AdroitHandPen-v1", "kwargs": {}}),
    }
    (folder / "data" / "metadata.json").write_text(json.dumps(about))
    for index, steps in enumerate(LENGTHS):
        rng = np.random.default_rng(index)

        def flat(values: np.ndarray) -> pa.Array:
            rows = values.reshape(len(values), -1)
            kind = pa.list_(pa.from_numpy_dtype(rows.dtype), list_size=rows.shape[1])
            return pa.FixedSizeListArray.from_arrays(rows.reshape(-1), type=kind)

        goal = pa.StructArray.from_arrays([flat(rng.normal(size=(steps + 1, 2, 2)))], names=["pen"])
        seen = [flat(rng.normal(size=(steps + 1, 3))), goal, pa.array(["turn the pen"] * (steps + 1))]
        seen.append(pa.array([jpeg(frame) for frame in images(steps + 1, seed=index)], type=pa.binary()))
        actions = np.r_[rng.uniform(-1, 1, (steps, 4)), np.zeros((1, 4))]
        table = pa.table(
            {
                "observations": pa.StructArray.from_arrays(seen, names=["pose", "goal", "mission", "front"]),
                "actions": flat(actions),
                "rewards": np.arange(steps + 1.0),
                "terminations": np.zeros(steps + 1, bool),
                "truncations": np.arange(steps + 1) == steps - 1,
            }
        )
        episode = folder / "data" / str(index)
        episode.mkdir()
        dataset.write_dataset(table, episode, format=kind)
        (episode / "metadata.json").write_text(json.dumps({"id": index, "total_steps": steps, "seed": 40 + index}))
    return folder


def write_lerobot(folder: Path, version: str = "v3.0") -> Path:
    """LeRobot as its own tools lay it out: SO-101 joint names, one camera as video, two tasks, 10 frames a second."""
    names = [f"{joint}.pos" for joint in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "gripper")]
    vector = {"dtype": "float32", "shape": [5], "names": names}
    counts = ("frame_index", "episode_index", "index", "task_index")
    scalar = {key: {"dtype": "int64", "shape": [1], "names": None} for key in counts}
    features = {
        "action": vector,
        "observation.state": vector,
        "observation.images.top": {"dtype": "video", "shape": [16, 24, 3], "names": ["height", "width", "channels"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **scalar,
    }
    info = {"codebase_version": version, "robot_type": "so101", "fps": 10, "features": features, "chunks_size": 1000}
    tasks = ["pick the cube", "wipe the table"]
    (folder / "meta").mkdir(parents=True)
    tables, rows, first = [], [], 0
    for index, steps in enumerate(LENGTHS):
        table = _lerobot_table(index, steps, first)
        tables.append(table)
        rows.append({"episode_index": index, "tasks": [tasks[index % 2]], "length": steps, "first": first})
        first += steps
    if version == "v3.0":
        _lerobot_v3(folder, info, tables, rows, tasks)
    else:
        _lerobot_v2(folder, info, tables, rows, tasks)
    return folder


def _lerobot_table(index: int, steps: int, first: int) -> pa.Table:
    rng = np.random.default_rng(index)
    return pa.table(
        {
            "action": pa.array(list(rng.normal(size=(steps, 5)).astype(np.float32)), type=pa.list_(pa.float32(), 5)),
            "observation.state": pa.array(
                list(rng.normal(size=(steps, 5)).astype(np.float32)), type=pa.list_(pa.float32())
            ),
            "timestamp": np.arange(steps, dtype=np.float32) / 10,
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": np.arange(first, first + steps),
            "task_index": np.full(steps, index % 2),
        }
    )


def _lerobot_v2(folder: Path, info: dict, tables: list, rows: list, tasks: list) -> None:
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "videos/chunk-000/observation.images.top").mkdir(parents=True)
    for index, table in enumerate(tables):
        pq.write_table(table, folder / f"data/chunk-000/episode_{index:06d}.parquet")
        name = f"videos/chunk-000/observation.images.top/episode_{index:06d}.mp4"
        write_video(folder / name, images(LENGTHS[index], seed=index))
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = [{key: row[key] for key in ("episode_index", "tasks", "length")} for row in rows]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
    (folder / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _lerobot_v3(folder: Path, info: dict, tables: list, rows: list, tasks: list) -> None:
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    for part in ("data/chunk-000", "videos/observation.images.top/chunk-000", "meta/episodes/chunk-000"):
        (folder / part).mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    frames = np.concatenate([images(steps, seed=index) for index, steps in enumerate(LENGTHS)])
    write_video(folder / "videos/observation.images.top/chunk-000/file-000.mp4", frames)
    episodes = [
        {
            "episode_index": row["episode_index"],
            "tasks": row["tasks"],
            "length": row["length"],
            "data/chunk_index": 0,
            "data/file_index": 0,
            "videos/observation.images.top/chunk_index": 0,
            "videos/observation.images.top/file_index": 0,
            "videos/observation.images.top/from_timestamp": row["first"] / 10,
            "stats/action/mean": [0.0] * 5,
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": tasks}), folder / "meta/tasks.parquet")
    (folder / "meta/info.json").write_text(json.dumps(info))


def write_video(path: Path, frames: np.ndarray, rate: int = 10) -> None:
    """An mp4 at 10 frames a second, key frames rare as cameras write them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def assert_same(found: Demo, written: Demo) -> None:
    """Every field as it was written."""
    for name in (field.name for field in fields(Demo)):
        one, other = getattr(found, name), getattr(written, name)
        if name == "obs":
            assert set(one) == set(other)
            for key in other:
                np.testing.assert_array_equal(one[key], other[key], strict=True)
        elif isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other, strict=True)
        else:
            assert one == other
