"""RoboVLMs checkpoints read into our head: REFERENCE's nine facts, on weights made here.

`Original` restates in plain torch what the original computes; it shares no code with the package.
"""

import logging
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from robopolicy.experiment import load_policy, read_provenance
from robopolicy.experiment.robovlms import CheckpointOptions, calvin_statistics, convert_checkpoint
from robopolicy.model.losses import action_loss
from robopolicy.model.normalization import ActionNormalizer
from robopolicy.model.policy_head import PolicyHead
from robopolicy.model.robovlms import RoboVlmsError, read_head
from robopolicy.types import ActionSpec, Chunk

D, H, W, K, A, LAYERS = 12, 16, 4, 3, 6, 2
KINDS = ("lstm", "fc", "gpt", "gpt with fc")


def perceptron_weights(prefix, inputs, outputs):
    widths = [inputs, 10, 9, 8, outputs]
    made = {}
    for place, (wide, narrow) in enumerate(pairwise(widths)):
        made[f"{prefix}.mlp.{2 * place}.weight"] = torch.randn(narrow, wide) / math.sqrt(wide)
        made[f"{prefix}.mlp.{2 * place}.bias"] = 0.1 * torch.randn(narrow)
    return made


def make_weights(kind, latent=1, seed=0):
    torch.manual_seed(seed)
    wide, hidden = D * latent, H * latent
    if kind == "gpt":
        wide = hidden
    weights = perceptron_weights("actions", hidden, K * A) | perceptron_weights("gripper", hidden, K)
    if kind == "lstm":
        cell = nn.LSTM(wide, hidden, LAYERS)
        return weights | {f"rnn.{key}": value.detach() for key, value in cell.state_dict().items()}
    if kind == "fc":
        weights["mlp.0.weight"], weights["mlp.0.bias"] = torch.randn(wide // 2, wide), torch.randn(wide // 2)
        weights["mlp.2.weight"], weights["mlp.2.bias"] = torch.randn(hidden, wide // 2), torch.randn(hidden)
        return weights
    weights["gpt.wpe.weight"] = torch.randn(W, hidden)
    for layer in range(LAYERS):
        sizes = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (hidden, 4 * hidden)}
        for part, shape in (sizes | {"mlp.c_proj": (4 * hidden, hidden)}).items():
            weights[f"gpt.h.{layer}.{part}.weight"] = torch.randn(shape) / math.sqrt(shape[0])
            weights[f"gpt.h.{layer}.{part}.bias"] = 0.1 * torch.randn(shape[1])
        for part in ("ln_1", "ln_2"):
            weights[f"gpt.h.{layer}.{part}.weight"] = 1 + 0.1 * torch.randn(hidden)
            weights[f"gpt.h.{layer}.{part}.bias"] = 0.1 * torch.randn(hidden)
        weights[f"gpt.h.{layer}.attn.bias"] = torch.ones(hidden, hidden, dtype=torch.uint8).tril()[None, None]
        weights[f"gpt.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    weights["gpt.ln_f.weight"], weights["gpt.ln_f.bias"] = 1 + 0.1 * torch.randn(hidden), 0.1 * torch.randn(hidden)
    if kind == "gpt with fc":
        weights["fc.weight"], weights["fc.bias"] = torch.randn(hidden, wide) / math.sqrt(wide), torch.randn(hidden)
    return weights


class Original:
    """RoboVLMs' decoders over whole windows, in plain torch."""

    def __init__(self, weights, latent=1, pooling="max"):
        self.weights, self.latent, self.pooling = weights, latent, pooling

    def linear(self, values, key):
        """A dense layer."""
        return functional.linear(values, self.weights[f"{key}.weight"], self.weights[f"{key}.bias"])

    def conv1d(self, values, key):
        """GPT-2's transposed dense layer."""
        return values @ self.weights[f"{key}.weight"] + self.weights[f"{key}.bias"]

    def norm(self, values, key):
        """Layer normalization."""
        return functional.layer_norm(
            values, values.shape[-1:], self.weights[f"{key}.weight"], self.weights[f"{key}.bias"]
        )

    def perceptron(self, hidden, prefix):
        """Four dense layers, ReLU between them."""
        for place in (0, 2, 4):
            hidden = torch.relu(self.linear(hidden, f"{prefix}.mlp.{place}"))
        return self.linear(hidden, f"{prefix}.mlp.6")

    def pool(self, tokens):
        """Adaptive maximum over tokens, then `(n d)`."""
        batch, window = tokens.shape[:2]
        flat = tokens.flatten(0, 1)
        if self.pooling == "max":
            flat = functional.adaptive_max_pool1d(flat.transpose(1, 2), self.latent).transpose(1, 2)
        return flat.reshape(batch, window, -1)

    def gpt(self, frames):
        """GPT-2 over frames, eight heads, learned positions."""
        if "fc.weight" in self.weights:
            frames = self.linear(frames, "fc")
        batch, steps, width = frames.shape
        hidden = frames + self.weights["gpt.wpe.weight"][:steps]
        causal = torch.ones(steps, steps, dtype=torch.bool).tril()
        for layer in range(LAYERS):
            block = f"gpt.h.{layer}"
            q, k, v = (
                part.reshape(batch, steps, 8, width // 8).transpose(1, 2)
                for part in self.conv1d(self.norm(hidden, f"{block}.ln_1"), f"{block}.attn.c_attn").split(width, dim=2)
            )
            score = torch.where(causal, q @ k.transpose(2, 3) / math.sqrt(width / 8), -1e4)
            attended = (score.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, width)
            hidden = hidden + self.conv1d(attended, f"{block}.attn.c_proj")
            wide = self.conv1d(self.norm(hidden, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            gelu = 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
            hidden = hidden + self.conv1d(gelu, f"{block}.mlp.c_proj")
        return self.norm(hidden, "gpt.ln_f")

    def __call__(self, tokens):
        """Arm and gripper outputs of whole windows."""
        frames = self.pool(tokens)
        if "rnn.weight_ih_l0" in self.weights:
            layers = sum("weight_hh" in key for key in self.weights)
            cell = nn.LSTM(frames.shape[-1], self.weights["rnn.weight_hh_l0"].shape[1], layers, batch_first=True)
            cell.load_state_dict({key[4:]: value for key, value in self.weights.items() if key.startswith("rnn.")})
            hidden = cell(frames)[0]
        elif "gpt.wpe.weight" in self.weights:
            hidden = self.gpt(frames)
        else:
            hidden = self.linear(torch.relu(self.linear(frames, "mlp.0")), "mlp.2")
        arm, gripper = torch.tanh(self.perceptron(hidden, "actions")), self.perceptron(hidden, "gripper")
        return arm.unflatten(-1, (K, A)), gripper.unflatten(-1, (K, 1))


def make_tokens(kind, count=5, batch=2, window=W):
    torch.manual_seed(1)
    return torch.randn(batch, window, count, H if kind == "gpt" else D)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_gives_the_originals_outputs(kind):
    """Guards against: a transposed weight or a permuted output, which still loads and acts wrong (facts 4 and 9)."""
    weights, tokens = make_weights(kind), make_tokens(kind)
    arm, gripper = Original(weights)(tokens)
    chunk = read_head(weights, window=W)(tokens)
    torch.testing.assert_close(chunk.arm, arm, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunk.gripper_logit, gripper, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pooling", "count"), [("max", 5), ("max", 2), ("none", 2)])
@pytest.mark.parametrize("kind", ["lstm", "fc", "gpt"])
def test_two_latents_give_the_originals_outputs(kind, pooling, count):
    """Guards against: other bins than 0:3 and 2:5 of five tokens, flattened token by token (fact 3)."""
    weights, tokens = make_weights(kind, latent=2), make_tokens(kind, count)
    arm, gripper = Original(weights, latent=2, pooling=pooling)(tokens)
    chunk = read_head(weights, window=W, latent=2, pooling=pooling)(tokens)
    torch.testing.assert_close(chunk.arm, arm, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunk.gripper_logit, gripper, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_at_run_time_a_tick_equals_a_pass_over_the_last_frames(kind):
    """Guards against: a tick that is not a zero-state pass over the last min(t + 1, W) frames (fact 5)."""
    weights, tokens = make_weights(kind), make_tokens(kind, window=2 * W + 1)
    head, original = read_head(weights, window=W), Original(weights)
    state = head.initial_state(2)
    with torch.inference_mode():
        for t in range(tokens.shape[1]):
            chunk, state = head.step(tokens[:, t], state)
            arm, gripper = original(tokens[:, max(0, t + 1 - W) : t + 1])
            torch.testing.assert_close(chunk.arm, arm[:, -1], atol=1e-5, rtol=0)
            torch.testing.assert_close(chunk.gripper_logit, gripper[:, -1], atol=1e-5, rtol=0)


def test_the_published_size_has_the_published_number_of_parameters():
    """Guards against: other than 41,210,950 parameters at input 2048, hidden 1024, 4 layers, chunk 10, 7 actions (fact 1)."""
    with torch.device("meta"):
        head = PolicyHead(2048, ActionSpec(6, 1), window=16, chunk=10)
    assert sum(parameter.numel() for parameter in head.parameters()) == 41_210_950
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    assert shapes["memory.weight_ih_l0"] == (4096, 2048)
    assert shapes["memory.weight_hh_l3"] == shapes["memory.weight_ih_l3"] == (4096, 1024)
    assert shapes["action_head.actions.mlp.6.weight"] == (60, 256)
    assert shapes["action_head.gripper.mlp.6.weight"] == (10, 256)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "model.act_head.",
        "module.model.act_head.",
        "_forward_module.model.act_head.",
        "act_head.",
        "model.lm_head.",
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_prefixes_and_wrappers_are_taken_off(prefix, wrapper):
    """Guards against: a head that isn't found because a training script saves it under another name (fact 2)."""
    weights = make_weights("lstm")
    named = {prefix + key: value for key, value in weights.items()}
    head = read_head({wrapper: named} if wrapper else named, window=W)
    for key, value in weights.items():
        ours = f"memory.{key[4:]}" if key.startswith("rnn.") else f"action_head.{key}"
        assert torch.equal(head.state_dict()[ours], value)


def test_keys_outside_the_head_are_reported_and_doubled_ones_are_not(caplog):
    """Guards against: weights that vanish without a word, by which a wrong file is loaded."""
    weights = make_weights("lstm")
    full = {f"model.act_head.{key}": value for key, value in weights.items()}
    full |= {f"model.lm_head.{key}": value for key, value in weights.items()}
    full |= {
        "model.action_token": torch.zeros(D),
        "model.backbone.mlp.0.weight": torch.zeros(3, 3),
        "model.mlp.0.bias": torch.ones(1),
    }
    with caplog.at_level(logging.WARNING):
        read_head(full, window=W)
    assert (
        "3 keys are outside the head and not used: model.action_token, model.backbone.mlp.0.weight, model.mlp.0.bias"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rnn.bias_hh_l1": None}, "missing in the head: .*memory.bias_hh_l1"),
        ({"gripper.mlp.6.weight": None}, "lacks 'gripper.mlp.6.weight'"),
        ({"actions.extra.weight": torch.zeros(1)}, "unknown keys in it: .*actions.extra.weight"),
        ({"rnn.weight_ih_l1": torch.zeros(4 * H, H + 1)}, "sizes that don't fit each other"),
    ],
)
def test_a_head_that_is_incomplete_or_unknown_is_refused(change, message):
    """Guards against: a head loaded with keys left over or made up."""
    weights = {key: value for key, value in (make_weights("lstm") | change).items() if value is not None}
    with pytest.raises(RoboVlmsError, match=message):
        read_head(weights, window=W)


def test_a_wrong_latent_window_or_file_is_one_line(tmp_path):
    """Guards against: a traceback for a wrong latent, window or file."""
    with pytest.raises(RoboVlmsError, match="width 12 must be a multiple of latent 5"):
        read_head(make_weights("lstm"), window=W, latent=5)
    for window in (3, 9):
        with pytest.raises(RoboVlmsError, match=f"window {window}, but the GPT head has positions for 4 frames"):
            read_head(make_weights("gpt"), window=window)
    with pytest.raises(RoboVlmsError, match="doesn't hold the head's window; give --window"):
        read_head(make_weights("lstm"))
    with pytest.raises(RoboVlmsError, match="no key of a policy head"):
        read_head({"model.projector.weight": torch.zeros(1)}, window=W)
    with pytest.raises(RoboVlmsError, match="RoboVLMs' discrete decoder"):
        read_head({"model.backbone.lm_head.weight": torch.zeros(1)}, window=W)
    with pytest.raises(RoboVlmsError, match="no such checkpoint"):
        read_head(tmp_path / "none.pt", window=W)


class Payload:
    """What a hostile pickle runs."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    """Guards against: a checkpoint from the internet that runs its author's code."""
    path = tmp_path / "hostile.pt"
    torch.save({"state_dict": make_weights("lstm"), "hyper_parameters": Payload()}, path)
    with pytest.raises(RoboVlmsError, match=r"it holds print\); no pickled object is loaded here") as caught:
        read_head(path, window=W)
    assert "unpickled\n" not in capsys.readouterr().out
    assert "\n" not in str(caught.value)


def test_the_loss_is_the_originals_with_either_mask():
    """Guards against: means over padded entries, or an episode's last action that doesn't count (facts 6 and 7)."""
    weights, tokens = make_weights("lstm"), make_tokens("lstm")
    arm, gripper = Original(weights)(tokens)
    target = torch.cat([torch.rand(2, W, K, A) * 2 - 1, torch.randint(0, 2, (2, W, K, 1)).float()], dim=-1)
    chunk = read_head(weights, window=W)(tokens)
    for mask in (torch.rand(2, W) < 0.7, torch.rand(2, W, K) < 0.7):
        huber = functional.huber_loss(arm, target[..., :A], reduction="none")[mask].mean()
        entropy = functional.binary_cross_entropy_with_logits(gripper, target[..., A:], reduction="none")[mask].mean()
        loss = action_loss(chunk, target, mask)
        torch.testing.assert_close(loss["loss"], huber + 0.01 * entropy)


def test_calvin_actions_are_scaled_as_the_original_does():
    """Guards against: actions not divided by 0.65, or gripper labels not mapped by (g + 1) / 2 (fact 8)."""
    spec = ActionSpec(6, 1)
    normalizer = ActionNormalizer(spec, calvin_statistics(spec))
    rows = torch.cat([(torch.rand(9, 6) * 2 - 1) * 0.65, torch.tensor([-1.0, 1.0]).repeat(5)[:9, None]], dim=1)
    target = normalizer.to_target(rows)
    torch.testing.assert_close(target[:, :6], rows[:, :6] / 0.65)
    torch.testing.assert_close(target[:, 6], (rows[:, 6] + 1) / 2)
    back = normalizer.to_rows(Chunk(arm=target[:, :6], gripper_logit=target[:, 6:] - 0.5))
    torch.testing.assert_close(back, rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_becomes_a_run_folder(kind, suffix, tmp_path):
    """Guards against: a converted checkpoint that can't be served like any other policy."""
    weights = make_weights(kind)
    source = tmp_path / f"roboVLMs.{suffix}"
    named = {f"model.act_head.{key}": value.contiguous() for key, value in weights.items()} | {
        "model.action_token": torch.zeros(D)
    }
    save_file(named, source) if suffix == "safetensors" else torch.save({"state_dict": named}, source)
    policy = load_policy(convert_checkpoint(source, tmp_path / "run", CheckpointOptions(window=W)))
    tokens = make_tokens(kind, count=1)
    state = policy.initial_state(2)
    for t in range(W):
        rows, state = policy.act({"tokens": tokens[:, t]}, state)
    arm, gripper = Original(weights)(tokens)
    torch.testing.assert_close(rows[..., :6], 0.65 * arm[:, -1], atol=1e-5, rtol=0)
    assert torch.equal(rows[..., 6:] > 0, gripper[:, -1] > 0)
    provenance = read_provenance(tmp_path / "run")
    assert provenance["origin"] == "RoboVLMs"
    assert provenance["keys_outside_the_head"] == ["model.action_token"]
