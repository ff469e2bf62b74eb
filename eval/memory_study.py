"""One change at a time to a low-dimensional policy with few demos: place of the memory, loss, noise, clipping, a linear skip.

    python eval/memory_study.py --data push.hdf5 --demos 10 --env metaworld:push-v3 --env-map eval/maps/metaworld.yaml \
        --variants memory=output,loss=huber memory=none,loss=huber [--json FILE]

Each variant is a list of `option=value` pairs that replace the defaults of `Variant`. Data, scaling and rollouts are those of
`floors.py`, so that a variant differs from the floors only in what it names. With equal windows, `memory=none` trains on the
same frames as the others.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from floors import Demo, FloorPolicy, clipped, evaluate, fit_scaling, load_simulator, read_demos, window_starts
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Variant:
    """One way to train; every frame of a window is supervised."""

    memory: Literal["none", "output", "hidden", "input"] = "output"
    """Where an LSTM over the window enters a perceptron on the present frame: nowhere; by a gate at the action or at the hidden
    vector, zero at first; or concatenated with the frame."""
    width: int = 256
    """Width of the perceptron's two layers."""
    memory_width: int = 128
    """Width of the LSTM's one layer."""
    window: int = 10
    """Frames of memory."""
    batch: int = 64
    """Windows per step."""
    steps: int = 2000
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Peak, after 100 steps of warm-up; then a cosine."""
    decay: float = 1e-4
    """Weight decay."""
    loss: Literal["mse", "huber"] = "mse"
    """Squared error, or smooth L1 with its bend at 0.1 of an action's half range."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the z-scored keys, the same over a window."""
    frame_noise: float = 0.0
    """The same, drawn for each frame."""
    clip: float = 1.0
    """Bound of the actions; 0 keeps them as the file has them."""
    skip: bool = False
    """Add a linear map from the frame to the action, without weight decay."""


class Network(nn.Module):
    """The perceptron of a variant with its memory."""

    def __init__(self, variant: Variant, width: int, actions: int) -> None:
        super().__init__()
        self.memory = variant.memory
        lstm = variant.memory_width if self.memory != "none" else 0
        first = width + (lstm if self.memory == "input" else 0)
        self.body = nn.Sequential(
            nn.Linear(first, variant.width), nn.ReLU(), nn.Linear(variant.width, variant.width), nn.ReLU()
        )
        self.out = nn.Linear(variant.width, actions)
        self.skip = nn.Linear(width, actions, bias=False) if variant.skip else None
        if lstm:
            self.lstm = nn.LSTM(width, lstm, batch_first=True)
        if self.memory in ("output", "hidden"):
            gated = actions if self.memory == "output" else variant.width
            self.mix, self.gate = nn.Linear(lstm, gated), nn.Parameter(torch.zeros(gated))
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)

    def forward(self, low: Tensor, images: Tensor) -> Tensor:
        """Actions (B, W, A) of frames (B, W, d)."""
        action = self.act(low)
        return action if self.skip is None else action + self.skip(low)

    def act(self, low: Tensor) -> Tensor:
        """Without the skip."""
        if self.memory == "none":
            return self.out(self.body(low))
        remembered = self.lstm(low)[0]
        if self.memory == "input":
            return self.out(self.body(torch.cat([low, remembered], dim=-1)))
        if self.memory == "hidden":
            return self.out(self.body(low) + self.gate * self.mix(remembered))
        return self.out(self.body(low)) + self.gate * self.mix(remembered)


def train(variant: Variant, demos: Sequence[Demo], seed: int) -> FloorPolicy:
    """Train one variant; the same seed gives the same weights on the same machine."""
    torch.manual_seed(seed)
    scaling = fit_scaling(demos)
    network = Network(variant, len(scaling.columns), demos[0].actions.shape[1])
    low = torch.cat([scaling.low(demo.low) for demo in demos])
    actions = np.concatenate([demo.actions for demo in demos])
    labels = torch.as_tensor((actions - scaling.middle) / scaling.half_range, dtype=torch.float32)
    starts = torch.from_numpy(window_starts([len(demo.actions) for demo in demos], variant.window))
    optimizer = torch.optim.AdamW(decay_groups(network, variant.decay), lr=variant.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, variant.steps))
    for _ in range(variant.steps):
        frames = starts[torch.randint(len(starts), (variant.batch,))][:, None] + torch.arange(variant.window)
        seen = low[frames]
        seen = seen + variant.noise * torch.randn_like(seen[:, :1]) + variant.frame_noise * torch.randn_like(seen)
        predicted = network(seen, seen)
        if variant.loss == "mse":
            loss = functional.mse_loss(predicted, labels[frames])
        else:
            loss = functional.smooth_l1_loss(predicted, labels[frames], beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return FloorPolicy(network.eval(), scaling, variant.window)


def decay_groups(network: Network, decay: float) -> list[dict[str, Any]]:
    """The parameters with weight decay, and the skip's without."""
    skip = [] if network.skip is None else list(network.skip.parameters())
    rest = [value for name, value in network.named_parameters() if not name.startswith("skip.")]
    return [{"params": rest, "weight_decay": decay}, {"params": skip, "weight_decay": 0.0}]


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate: 100 steps of warm-up under a cosine."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))


def parse_variant(text: str) -> Variant:
    """A variant from `option=value,option=value`.

    Raises:
        SystemExit: an unknown option, or a value of another type.
    """
    defaults = Variant()
    types = {field.name: type(getattr(defaults, field.name)) for field in fields(Variant)}
    given: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in types:
            raise SystemExit(f"variant {text!r}: no option {name!r}. There are: {', '.join(types)}")
        given[name] = value == "true" if types[name] is bool else types[name](value)
    return replace(defaults, **given)


def main() -> None:
    """Train every variant with every seed and print its success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", nargs="+", required=True, type=parse_variant, help="option=value,... of each variant"
    )
    parser.add_argument("--data", type=Path, required=True, help="robomimic HDF5 file")
    parser.add_argument("--demos", type=int, default=10, help="demos to train on, the first of the file")
    parser.add_argument("--env", required=True, help="MODULE:ID, as for `robopolicy eval`")
    parser.add_argument("--env-map", type=Path, help="YAML file, as for `robopolicy eval`")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1], help="one training each")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each training")
    parser.add_argument("--seed", type=int, default=10000, help="seed of the first episode")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    demos, simulator = read_demos(options.data, options.demos), load_simulator(options.env, options.env_map)
    rows = []
    for variant in options.variants:
        bounded = clipped(demos, variant.clip) if variant.clip else demos
        for seed in options.train_seeds:
            started = time.process_time()
            policy = train(variant, bounded, seed)
            seconds = time.process_time() - started
            outcomes = evaluate(policy, simulator, range(options.seed, options.seed + options.episodes))
            rows.append({"variant": asdict(variant), "train_seed": seed, "cpu_s": seconds, "outcomes": outcomes})
            print(
                f"{variant}  seed {seed}  success {sum(outcomes)} / {len(outcomes)}  {seconds:.0f} s of CPU", flush=True
            )
    if options.json is not None:
        options.json.write_text(json.dumps({"env": options.env, "demos": options.demos, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
