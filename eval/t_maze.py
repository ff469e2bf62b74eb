"""A memory task from scratch, ours beside Stable-Baselines3's RecurrentPPO at equal environment steps.

    python eval/t_maze.py ours --seeds 0 1 2 --json ours.json
    PEERS/bin/python eval/t_maze.py recurrent-ppo --seeds 0 1 2 --json peer.json      # an environment with sb3-contrib

In the T-maze (`tests/training/t_maze.py`) the first frame says which way to turn six steps later: a policy without memory
succeeds in half of all episodes. Both learn in 16 copies for 30,720 steps, with an LSTM of 16 units each for the actor and
the critic, and are measured without noise on the same 200 seeds. `recurrent-ppo` is run with our step sizes and again with
its own defaults.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.training.t_maze import TMaze

COPIES, ROLLOUT, ITERATIONS, EPISODES = 16, 24, 80, 200


def ours(seed: int) -> Callable[[], int]:
    """Improve an untrained policy; returns a function that counts successes."""
    import torch

    from robopolicy.experiment import DemoFacts, ExperimentConfig, build_policy, load_policy, save_policy
    from robopolicy.rollout.env_map import EnvMap
    from robopolicy.rollout.env_worlds import open_worlds
    from robopolicy.rollout.evaluate import evaluate_in_worlds
    from robopolicy.training.improve import ImproveConfig, Surroundings, improve
    from robopolicy.training.reinforce import PPOConfig
    from robopolicy.types import ActionSpec, ArraySpec

    sizes = {"encoder.width": 16, "encoder.hidden": 16, "action_head.chunk": 1, "action_head.widths": [16]}
    memory = {"memory.history": "carry", "memory.layers": 1, "memory.hidden": 16}
    torch.manual_seed(seed)
    folder = Path(tempfile.mkdtemp())
    facts = DemoFacts(ActionSpec(arm=1, gripper=0), {"state": ArraySpec((2,))})
    save_policy(build_policy(ExperimentConfig().change(sizes | memory), facts), folder / "start", {})
    ppo = PPOConfig(
        rollout_steps=ROLLOUT,
        warmup_iterations=2,
        mini_batches=2,
        std=0.5,
        anchor="0",
        lr=1e-3,
        critic_lr=3e-3,
        entropy=0.001,
        gae_lambda=0.95,
        average=1,
    )

    def worlds(policy: Any) -> Any:
        limit = EnvMap.read({"max_episode_steps": 20})
        return open_worlds(TMaze, policy, range(COPIES), env_map=limit, num_envs=COPIES)

    config = ImproveConfig(iterations=ITERATIONS, checkpoint_every=ITERATIONS, seed=seed)
    improve(folder / "start", Surroundings(worlds), folder / "run", config, ppo)

    def successes() -> int:
        policy = load_policy(folder / "run")
        return evaluate_in_worlds(policy, worlds(policy), range(EPISODES)).successes

    return successes


def recurrent_ppo(seed: int, own_defaults: bool) -> Callable[[], int]:
    """Train sb3-contrib's RecurrentPPO; returns a function that counts successes."""
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    options: dict[str, Any] = {}
    if not own_defaults:
        options = {"n_steps": ROLLOUT, "batch_size": ROLLOUT * COPIES // 2, "n_epochs": 4, "learning_rate": 1e-3}
        options |= {
            "ent_coef": 0.001,
            "policy_kwargs": {"lstm_hidden_size": 16, "net_arch": [16], "log_std_init": -0.7},
        }
    model = RecurrentPPO("MlpLstmPolicy", make_vec_env(TMaze, COPIES, seed=seed), seed=seed, device="cpu", **options)
    model.learn(COPIES * ROLLOUT * ITERATIONS)

    def successes() -> int:
        env, count = TMaze(), 0
        for episode in range(EPISODES):
            (obs, _), state, ended = env.reset(seed=episode), None, False
            start = np.ones(1, bool)
            while not ended:
                action, state = model.predict(obs, state=state, episode_start=start, deterministic=True)
                obs, reward, ended, _, _ = env.step(action)
                start = np.zeros(1, bool)
            count += reward > 0
        return int(count)

    return successes


def main() -> None:
    """Run one side and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["ours", "recurrent-ppo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    variants: dict[str, Callable[[int], Callable[[], int]]] = {"ours": ours}
    if options.side == "recurrent-ppo":
        variants = {
            "recurrent-ppo, our step sizes": lambda seed: recurrent_ppo(seed, False),
            "recurrent-ppo, its defaults": lambda seed: recurrent_ppo(seed, True),
        }
    rows = []
    for name, train in variants.items():
        for seed in options.seeds:
            began, cpu_s = time.perf_counter(), time.process_time()
            successes = train(seed)
            spent = time.perf_counter() - began, time.process_time() - cpu_s
            steps = COPIES * ROLLOUT * ITERATIONS
            row = {
                "side": name,
                "training_seed": seed,
                "successes": successes(),
                "episodes": EPISODES,
                "env_steps": steps,
            }
            rows.append(
                row
                | {
                    "wall_s": round(spent[0], 1),
                    "cpu_s": round(spent[1], 1),
                    "steps_per_cpu_s": round(steps / spent[1]),
                }
            )
            print(rows[-1], flush=True)
    options.json.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
