"""A run folder's README.md: what the policy is, what it was trained on, its success rate, and how to run it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from robopolicy.components import origin_of
from robopolicy.experiment.config import COMPONENT_SECTIONS
from robopolicy.experiment.privacy import scrubbed
from robopolicy.experiment.reading import config_to_dict
from robopolicy.files import write_file
from robopolicy.model.policy import ChunkPolicy

CARD = "README.md"
HUB_FACTS = """\
---
library_name: robopolicy
pipeline_tag: robotics
tags: [robotics, imitation-learning]
---
"""
"""Metadata that Hugging Face's hub reads from a model card."""
HOW_TO_RUN = """\
    pip install robopolicy{extra}
    robopolicy eval FOLDER{task}{backbone}
    robopolicy serve FOLDER --port 8000{backbone}
    robopolicy export FOLDER --out exported

or in Python:

    policy = robopolicy.load_policy("FOLDER"{argument})
    actions, state = policy.act(observation, policy.initial_state(1))
"""
RESULTS, END = "<!-- results -->", "<!-- end of results -->"
"""The lines between which `update_results` writes."""
NO_RESULTS = "Not evaluated yet; `robopolicy eval FOLDER` adds the success rate here."


def model_card(policy: ChunkPolicy, provenance: Mapping[str, Any]) -> str:
    """Markdown: task, results, observations, actions, demo files with fingerprints, config; no path of this machine."""
    spec, config = policy.spec, config_to_dict(policy.config)
    config.pop("plugins", None)
    config.get("data", {}).pop("files", None)
    task = provenance.get("task")
    rate = f", one every {provenance['control_dt']:g} s" if provenance.get("control_dt") else ""
    tokens = bool(provenance.get("token_encoder"))
    run = HOW_TO_RUN.format(
        extra="[vlm]" if tokens else "",
        task=f" --task {task}" if task else " --env MODULE:ID",
        backbone=" --backbone FOLDER_OR_NAME" if tokens else "",
        argument=', backbone="FOLDER_OR_NAME"' if tokens else "",
    )
    lines = [
        f"{HUB_FACTS}# Policy for {task or 'a task that the demos do not name'}",
        "",
        f"A robopolicy policy: encoder `{config['encoder']['kind']}`, memory `{config['memory']['kind']}`, action head "
        f"`{config['action_head']['kind']}`, {sum(weight.numel() for weight in policy.parameters()):,} weights.",
        *_needs(config, provenance),
        "",
        "## Success in closed loop",
        "",
        RESULTS,
        NO_RESULTS,
        END,
        "",
        "## Inputs and outputs",
        "",
        "| observation | shape of one frame | type |",
        "|---|---|---|",
        *(f"| `{key}` | {tuple(array.shape)} | {array.dtype} |" for key, array in policy.obs.items()),
        *([f"| instruction | such as: {policy.vocabulary.longest} | text |"] if policy.vocabulary else []),
        "",
        f"Actions: {spec.action.width} columns in the demos' units and order, {spec.action.kind}{rate}; "
        f"{spec.chunk} are predicted from each frame.",
        "",
        "## Training data",
        "",
        *(_file(facts) for facts in provenance.get("files", ())),
        "",
        f"{provenance.get('train_demos', 0)} demos for training, {provenance.get('valid_demos', 0)} held out. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in provenance.get('versions', {}).items())}.",
        "",
        "## Run it",
        "",
        run,
        "## Config",
        "",
        "```yaml",
        yaml.safe_dump(scrubbed(config), sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def update_results(folder: str | Path) -> None:
    """Write the newest evaluation of each task in the folder into its README, if that is one of `model_card`."""
    path = Path(folder) / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, start, rest = text.partition(RESULTS)
    _, end, after = rest.partition(END)
    if start and end:
        write_file(path, f"{before}{start}\n{_results(Path(folder))}\n{end}{after}")


def _results(folder: Path) -> str:
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime):
        values = json.loads(path.read_text())
        if isinstance(values, dict) and {"task", "success_rate", "interval", "outcomes"} <= values.keys():
            newest[values["task"]] = values
    if not newest:
        return NO_RESULTS
    rows = ["| task | solved | success | 95 % interval | seeds | mean steps |", "|---|---|---|---|---|---|"]
    for task, values in sorted(newest.items()):
        low, high = (100 * bound for bound in values["interval"])
        seeds = [outcome["seed"] for outcome in values["outcomes"]]
        rows.append(
            f"| {task} | {values['successes']} / {values['episodes']} | {100 * values['success_rate']:.0f} % | "
            f"{low:.0f}-{high:.0f} % | {min(seeds)} to {max(seeds)} | {values['mean_steps']:.0f} of {values['control_dt']} s |"
        )
    return "\n".join(rows)


def _needs(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """A line with the plug-ins and models that the policy needs in addition to this package, if it needs any."""
    origins = {origin_of(section, config[section]["kind"]) for section in COMPONENT_SECTIONS} - {"robopolicy"}
    models = [config[section].get("model") for section in ("encoder", "text")]
    models.append((provenance.get("token_encoder") or {}).get("source"))
    needed = [f"plug-in `{origin}`" for origin in sorted(origins)]
    needed += [f"model `{scrubbed(model)}`" for model in dict.fromkeys(models) if model]
    return [f"It needs, in addition to robopolicy: {', '.join(needed)}."] if needed else []


def _file(facts: Mapping[str, Any]) -> str:
    digest = next((str(value) for name, value in facts.items() if name.startswith("sha256")), "")
    return f"- `{facts.get('name')}`, {facts.get('bytes', 0):,} bytes, SHA-256 of its first and last MiB {digest[:16]}"
