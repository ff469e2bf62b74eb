"""A run folder's README.md: what the policy is, what it was trained on, and how to run it."""

from collections.abc import Mapping
from typing import Any

import yaml

from robopolicy.experiment.reading import config_to_dict
from robopolicy.model.policy import ChunkPolicy

HOW_TO_RUN = """\
    robopolicy eval FOLDER{task}
    robopolicy serve FOLDER --port 8000
    robopolicy export FOLDER --out exported

or in Python:

    policy = robopolicy.load_policy("FOLDER")
    actions, state = policy.act(observation, policy.initial_state(1))
"""


def model_card(policy: ChunkPolicy, provenance: Mapping[str, Any]) -> str:
    """Markdown: task, observations, actions, demo files with fingerprints, versions, the config; no path of this machine."""
    spec, config = policy.spec, config_to_dict(policy.config)
    config.pop("plugins", None)
    config.get("data", {}).pop("files", None)
    task = provenance.get("task")
    lines = [
        f"# Policy for {task or 'a task that the demos do not name'}",
        "",
        f"A robopolicy policy: memory `{config['memory']['kind']}`, action head `{config['action_head']['kind']}`, "
        f"{spec.chunk} actions per frame, {sum(weight.numel() for weight in policy.parameters()):,} weights.",
        "",
        "## Inputs and outputs",
        "",
        "| observation | shape of one frame | type |",
        "|---|---|---|",
        *(f"| `{key}` | {tuple(array.shape)} | {array.dtype} |" for key, array in policy.obs.items()),
        "",
        f"Actions: {spec.action.width} columns in the demos' units and order"
        + (f", one every {provenance['control_dt']} s." if provenance.get("control_dt") else "."),
        "",
        "## Training data",
        "",
        *(_file(facts) for facts in provenance.get("files", ())),
        f"{provenance.get('train_demos', 0)} demos for training, {provenance.get('valid_demos', 0)} held out. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in provenance.get('versions', {}).items())}.",
        "",
        "## Run it",
        "",
        HOW_TO_RUN.format(task=f" --task {task}" if task else " --env MODULE:ID"),
        "Success rates with intervals are in `eval/` after `robopolicy eval`.",
        "",
        "## Config",
        "",
        "```yaml",
        yaml.safe_dump(config, sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _file(facts: Mapping[str, Any]) -> str:
    digest = next((str(value) for name, value in facts.items() if name.startswith("sha256")), "")
    return f"- `{facts.get('name')}`, {facts.get('bytes', 0):,} bytes, SHA-256 of its ends {digest[:16]}"
