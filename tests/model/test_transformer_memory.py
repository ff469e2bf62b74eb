"""The memory `transformer`: GPT-2's arithmetic, and a window that slides exactly."""

import torch
from torch import nn

from tests.making import make


def test_a_pass_equals_torchs_own_pre_norm_encoder():
    """Guards against: a block that looks like GPT-2's but is not: norm order, GELU, causality, residuals."""
    torch.manual_seed(0)
    memory = make("memory", "transformer", 4, hidden=8, layers=1, window=5, heads=2).eval()
    block = memory.blocks[0]
    peer = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, activation=nn.GELU("tanh"), batch_first=True, norm_first=True
    ).eval()
    peer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            "self_attn.out_proj.weight": block.out.weight,
            "self_attn.out_proj.bias": block.out.bias,
            "linear1.weight": block.mlp[0].weight,
            "linear1.bias": block.mlp[0].bias,
            "linear2.weight": block.mlp[2].weight,
            "linear2.bias": block.mlp[2].bias,
            "norm1.weight": block.norm_1.weight,
            "norm1.bias": block.norm_1.bias,
            "norm2.weight": block.norm_2.weight,
            "norm2.bias": block.norm_2.bias,
        }
    )
    frames = torch.randn(2, 5, 4)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    expected = memory.norm(peer(memory.embed(frames) + memory.positions, src_mask=causal))
    assert (memory(frames) - expected).abs().max() < 1e-5


def test_positions_count_from_the_oldest_frame_in_the_window():
    """Guards against: a stream whose positions keep growing after the window is full, or start elsewhere before it is."""
    memory = make("memory", "transformer", 4, hidden=8, layers=2, window=3, heads=2).eval()
    frames = torch.randn(6, 1, 4)
    state = memory.initial_state((1,))
    with torch.no_grad():
        for t, frame in enumerate(frames):
            hidden, state = memory.step(frame, state)
            window = frames[max(0, t - 2) : t + 1].transpose(0, 1)
            assert (hidden - memory(window)[:, -1]).abs().max() < 1e-6


def test_dropout_acts_in_training_only():
    """Guards against: actions at random on the robot."""
    memory = make("memory", "transformer", 4, hidden=8, layers=2, window=3, heads=2, dropout=0.5)
    frames = torch.randn(2, 3, 4)
    assert not torch.equal(memory(frames), memory(frames))
    memory.eval()
    assert torch.equal(memory(frames), memory(frames))
