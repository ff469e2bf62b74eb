"""Loads RoboVLMs checkpoints (LSTM, FC, GPT and discrete decoders) as a `PolicyHead`; outputs agree to 1e-5.

File layout, from Robot-VLAs/RoboVLMs, commit 8adc1d2. A head's file holds `rnn.*` (LSTM), `mlp.*` (FC) or `gpt.*` and `fc.*`
(GPT), each with `actions.mlp.*` and `gripper.mlp.*`. In a full checkpoint it sits under `model.act_head.`, sometimes
doubled under `model.lm_head.`; the dict may be under `state_dict` or `model_state_dict`. The backbone's weights are under
`model.backbone.`, the learned vector of its action tokens is `model.action_token`. DeepSpeed puts `_forward_module.` before
all of them. The discrete decoder has no weights: the language model generates each action column as one word. Words near the
end of its vocabulary represent bins of equal width over [-1, 1].
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from robopolicy.model.encoders._generative import FLOAT16_EXACT, WORD_COLUMNS
from robopolicy.model.policy_head import PolicyHead
from robopolicy.types import ActionSpec

LOG = logging.getLogger(__name__)

GPT_HEADS = 8
"""Attention heads of RoboVLMs' GPT decoder; no shape in the file depends on them."""

_OUTER = r"^(?:_forward_module\.)*(?:module\.)*(?:model\.)*"
_PREFIX = re.compile(_OUTER + r"(?:(act_head|lm_head)\.)*")
_BACKBONE = re.compile(_OUTER + r"backbone\.")
_ACTION_TOKEN = re.compile(_OUTER + r"action_token$")
_CONV_1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_NAMES = (
    (r"^(actions|gripper)\.", r"action_head.\1."),
    (r"^(mlp)\.", r"memory.\1."),
    (r"^rnn\.", "memory."),
    (r"^fc\.", "memory.embed."),
    (r"^gpt\.wpe\.weight$", "memory.positions"),
    (r"^gpt\.ln_f\.", "memory.norm."),
    (r"^gpt\.h\.(\d+)\.", r"memory.blocks.\1."),
    (r"\.ln_([12])\.", r".norm_\1."),
    (r"\.attn\.c_attn\.", ".qkv."),
    (r"\.attn\.c_proj\.", ".out."),
    (r"\.mlp\.c_fc\.", ".mlp.0."),
    (r"\.mlp\.c_proj\.", ".mlp.2."),
)
_PARTS = ("rnn.", "actions.", "gripper.", "mlp.", "gpt.", "fc.")


class RoboVlmsError(ValueError):
    """The checkpoint holds no supported action head; the message is one line."""


def read_head(
    source: str | Path | Mapping[str, Any],
    window: int | None = None,
    latent: int = 1,
    pooling: Literal["max", "none"] = "max",
) -> PolicyHead:
    """RoboVLMs' head as a `PolicyHead`, in eval mode. Every key of the head is used; all other keys are logged.

    Args:
        source: a checkpoint (torch file, read with `weights_only`, or safetensors), or a state dict with its prefixes.
        window: W, frames of memory. For a GPT head, the number of its positions, since the original keeps that
            number of frames; files of other heads don't contain it.
        latent: tokens kept per frame, RoboVLMs' `latent`; the shapes hold only its product with the widths.
        pooling: `max` for RoboVLMs' down-sampling `pooling`, `none` for its `none`.

    Raises:
        RoboVlmsError: there is no head, a key of it is missing or unknown, or the sizes don't fit `latent` or `window`.
    """
    head, unused = read_checkpoint(source, window, latent, pooling)
    log_unused(source, unused)
    return head


def words_head(arm: int, bins: int) -> PolicyHead:
    """The discrete decoder as a head: positions of generated words (arm + 1, `WORD_COLUMNS`) -> the centers of their bins.

    Position n from the vocabulary's end represents the bin between edges n and n + 1 of `bins` edges over [-1, 1]; higher
    positions represent the outermost bin. All weights are integers: the logit of bin b at position p is 2 p b - b^2, which is
    largest for b = p.

    Raises:
        RoboVlmsError: there are fewer than 3 edges, or more than float16 tokens can count.
    """
    if not 3 <= bins <= FLOAT16_EXACT:
        raise RoboVlmsError(f"bins {bins} of the discrete decoder; expected 3 .. {FLOAT16_EXACT}")
    words = arm + 1
    parts: dict[str, Any] = {"pooling": "none", "memory": "none", "action_head": "discrete"}
    parts |= {"latent": words, "hidden": 1, "widths": (), "bins": bins - 1, "temperature": 1e-3}
    head = PolicyHead(WORD_COLUMNS, ActionSpec(arm=arm, gripper=1), chunk=1, **parts)
    place, identity = torch.arange(bins - 1.0), torch.eye(words)
    head.load_state_dict(
        {
            "memory.mlp.0.weight": identity.repeat_interleave(WORD_COLUMNS, dim=1)
            * torch.tensor([1.0, 0.0]).repeat(words),
            "memory.mlp.0.bias": torch.zeros(words),
            "memory.mlp.2.weight": identity,
            "memory.mlp.2.bias": torch.zeros(words),
            "action_head.actions.mlp.0.weight": torch.kron(identity[:arm], 2 * place[:, None]),
            "action_head.actions.mlp.0.bias": -(place**2).repeat(arm),
            "action_head.gripper.mlp.0.weight": identity[arm:],
            "action_head.gripper.mlp.0.bias": -place.mean()[None],
        }
    )
    return head.eval()


def is_discrete(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds a backbone and no head."""
    return bool(backbone_tensors(state)) and not _places_of_head(state)


def read_checkpoint(
    source: str | Path | Mapping[str, Any], window: int | None, latent: int, pooling: Literal["max", "none"]
) -> tuple[PolicyHead, tuple[str, ...]]:
    """As `read_head`, but also returns the keys outside the head instead of logging them."""
    name = "this state dict" if isinstance(source, Mapping) else str(source)
    tensors, unused = _head_tensors(state_dict(source), name)
    head = _empty_head(tensors, window, latent, pooling, name)
    ours, expected = _renamed(tensors), head.state_dict()
    missing, unknown = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    if missing or unknown:
        raise RoboVlmsError(
            f"{name}: keys missing in the head: {missing or 'none'}; unknown keys in it: {unknown or 'none'}"
        )
    wrong = [
        f"{key} {tuple(ours[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if ours[key].shape != expected[key].shape
    ]
    if wrong:
        raise RoboVlmsError(f"{name}: sizes that don't fit each other with latent {latent}: {'; '.join(wrong)}")
    head.load_state_dict({key: value.float() for key, value in ours.items()})
    return head.eval(), unused


def log_unused(source: str | Path | Mapping[str, Any], unused: Sequence[str]) -> None:
    """Log a warning that lists unused keys of a checkpoint."""
    if unused:
        name = "this state dict" if isinstance(source, Mapping) else str(source)
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        LOG.warning(
            "%s: %d keys are outside the head and not used: %s%s", name, len(unused), ", ".join(unused[:5]), more
        )


def backbone_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's weights under the names of its own class; empty if the checkpoint contains only the head."""
    return {key[match.end() :]: value for key, value in state.items() if (match := _BACKBONE.match(key))}


def action_token(state: Mapping[str, Any]) -> Tensor | None:
    """The learned vector (D,) of the action tokens; None if the head reads other hidden states."""
    return next((value for key, value in state.items() if _ACTION_TOKEN.match(key)), None)


def state_dict(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping of keys to tensors in a file, without the dictionaries that training frameworks wrap around it.

    Raises:
        RoboVlmsError: the file can't be read as weights alone.
    """
    state = source if isinstance(source, Mapping) else _load(Path(source))
    for wrapper in ("state_dict", "model_state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    return state


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise RoboVlmsError(f"{path}: no such checkpoint")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {foreign[1]}" if foreign else type(error).__name__
        raise RoboVlmsError(
            f"{path}: can't be read as weights alone ({reason}); no pickled object is loaded here; save its state dict alone"
        ) from error
    if not isinstance(loaded, Mapping):
        raise RoboVlmsError(f"{path}: holds a {type(loaded).__name__}; expected a state dict")
    return loaded


def _places_of_head(state: Mapping[str, Any]) -> dict[str | None, dict[str, str]]:
    """For each place in a file that holds a head: the head's keys without and with the prefixes of the file."""
    found: dict[str | None, dict[str, str]] = {}
    for key, value in state.items():
        match = _PREFIX.match(key)
        bare = key[match.end() :] if match else key
        if isinstance(value, Tensor) and match and (match[1] or bare.startswith(_PARTS)):
            found.setdefault(match[1], {})[bare] = key
    return found


def _head_tensors(state: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The head's tensors by their keys without prefix, and the keys that belong to other parts."""
    found = _places_of_head(state)
    home = next((place for place in ("act_head", "lm_head", None) if place in found), None)
    keys = found.get(home, {})
    if not keys and backbone_tensors(state):
        raise RoboVlmsError(
            f"{name}: a backbone without a policy head: RoboVLMs' discrete decoder, whose actions the language model writes as "
            "words; `convert` reads it with --backbone"
        )
    if not keys:
        raise RoboVlmsError(
            f"{name}: no key of a policy head (rnn, actions, gripper, mlp, gpt, fc) among {len(state)} keys"
        )
    used = set(keys.values())
    if home == "act_head":
        used |= {
            key
            for bare, key in found.get("lm_head", {}).items()
            if bare in keys and torch.equal(state[key], state[keys[bare]])
        }
    return {bare: state[key] for bare, key in keys.items()}, tuple(key for key in state if key not in used)


def _empty_head(
    tensors: Mapping[str, Tensor], window: int | None, latent: int, pooling: Literal["max", "none"], name: str
) -> PolicyHead:
    """A head with random weights, whose parts and sizes match the shapes in the file."""

    def rows(key: str, axis: int = 0) -> int:
        if key not in tensors:
            raise RoboVlmsError(f"{name}: the head lacks {key!r}. It has: {', '.join(sorted(tensors))}")
        return tensors[key].shape[axis]

    depth = max(
        (int(key.split(".")[2]) for key in tensors if re.fullmatch(r"actions\.mlp\.\d+\.weight", key)), default=0
    )
    chunk = rows(f"gripper.mlp.{depth}.weight")
    widths = tuple(rows(f"actions.mlp.{place}.weight") for place in range(0, depth, 2))
    sizes: dict[str, Any] = {"window": window}
    if "rnn.weight_ih_l0" in tensors:
        cell, inputs, hidden = "lstm", rows("rnn.weight_ih_l0", 1), rows("rnn.weight_hh_l0", 1)
        sizes["layers"] = sum(key.startswith("rnn.weight_hh_l") for key in tensors)
    elif "gpt.wpe.weight" in tensors:
        cell, hidden, positions = "transformer", rows("gpt.wpe.weight", 1), rows("gpt.wpe.weight")
        inputs = rows("fc.weight", 1) if "fc.weight" in tensors else hidden
        layers = len({key.split(".")[2] for key in tensors if key.startswith("gpt.h.")})
        sizes = {"window": positions, "layers": layers, "heads": GPT_HEADS}
        if window not in (None, positions):
            raise RoboVlmsError(
                f"{name}: window {window}, but the GPT head has positions for {positions} frames, which are its window; leave "
                "--window out"
            )
    else:
        cell, inputs, hidden, sizes = "none", rows("mlp.0.weight", 1), rows("mlp.2.weight"), {}
    if sizes.get("window", 1) is None:
        raise RoboVlmsError(
            f"{name}: the file doesn't hold the head's window; give --window, 8 or 16 in RoboVLMs' configs"
        )
    for what, size in {"input": inputs, "memory": hidden}.items():
        if size % latent:
            raise RoboVlmsError(
                f"{name}: {what} width {size} must be a multiple of latent {latent}; give the latent it was trained with"
            )
    outputs = rows(f"actions.mlp.{depth}.weight")
    if outputs % chunk:
        raise RoboVlmsError(
            f"{name}: {outputs} arm outputs for a chunk of {chunk} (the gripper's outputs); expected a multiple"
        )
    return PolicyHead(
        inputs // latent,
        ActionSpec(arm=outputs // chunk, gripper=1),
        chunk=chunk,
        pooling=pooling,
        memory=cell,
        latent=latent,
        hidden=hidden // latent,
        widths=widths,
        **sizes,
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors under our names; GPT-2's `Conv1D` weights are transposed, its masks left out."""
    ours: dict[str, Tensor] = {}
    if "gpt.wpe.weight" in tensors and "fc.weight" not in tensors:
        width = tensors["gpt.wpe.weight"].shape[1]
        ours = {"memory.embed.weight": torch.eye(width), "memory.embed.bias": torch.zeros(width)}
    for key, value in tensors.items():
        if re.fullmatch(r"gpt\.h\.\d+\.attn\.(bias|masked_bias)", key):
            continue
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        ours[name] = value.T if _CONV_1D.search(key) else value
    return ours
