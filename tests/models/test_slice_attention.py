import math

import pytest
import torch
from torch import nn

from voxdiff.models.slice_attention import (
    FactorizedAttention,
    MaskedGroupNorm,
    RelativePositionNetwork,
    SliceAttention,
    SliceSet,
    distance_features,
)

CHANNELS, HEAD_DIM, TEMB = 8, 4, 12
POSITIONS = torch.tensor([[3.0, 0.5, 17.25], [0.0, 1.0, 1.0]])
NORM = {"groups": 2, "eps": 1e-5}


def make_slices(positions=POSITIONS, valid=None):
    temb = torch.randn(2, TEMB, generator=torch.Generator().manual_seed(1))
    return SliceSet(temb[: len(positions)], distance_features(positions), valid)


def randomize(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def make_attention(**options):
    options = {"masked_norm": False, "pre_norm_residual": False, **options}
    return FactorizedAttention(CHANNELS, HEAD_DIM, TEMB, **NORM, **options)


def test_distances_tell_direction_and_are_real_numbers():
    features = distance_features(POSITIONS)
    assert features.shape == (2, 3, 3, 3)
    assert features[0, 2, 1].tolist() == pytest.approx([math.log(17.75), 0, 0])
    assert features[0, 1, 2].tolist() == pytest.approx([0, math.log(17.75), 0])
    assert features[1, 1, 2].tolist() == features[0, 0, 0].tolist() == [0, 0, 1]


def test_distances_are_exact_whatever_the_precision_of_the_network():
    assert torch.equal(
        distance_features(torch.tensor([[126.0, 127.0]], dtype=torch.float64))[0, 1, 0],
        torch.tensor([math.log(2), 0, 0]),
    )


def test_attention_is_the_published_formula():
    attention, slices = randomize(SliceAttention(CHANNELS, HEAD_DIM, TEMB, masked_norm=False, **NORM)), make_slices()
    tokens = torch.randn(2, 5, 3, CHANNELS)
    with torch.no_grad():
        result = attention.attend_slots(tokens, slices)
        q, k, v = (p(tokens).unflatten(3, (2, HEAD_DIM)) for p in (attention.to_q, attention.to_k, attention.to_v))
        relative = (attention.relative_q, attention.relative_k, attention.relative_v)
        rq, rk, rv = (network(slices, HEAD_DIM) for network in relative)
        gathered = torch.zeros(2, 5, 3, 2, HEAD_DIM)
        for b, p, h, i in torch.cartesian_prod(*(torch.arange(size) for size in (2, 5, 2, 3))).tolist():
            logits = torch.stack(
                [
                    (q[b, p, i, h] @ k[b, p, j, h] + q[b, p, i, h] @ rk[b, h, i, j] + k[b, p, j, h] @ rq[b, h, j, i])
                    * HEAD_DIM**-0.5
                    for j in range(3)
                ]
            )
            gathered[b, p, i, h] = logits.softmax(0) @ (v[b, p, :, h] + rv[b, h, i])
        torch.testing.assert_close(result, attention.to_out[0](gathered.flatten(3)), atol=1e-5, rtol=1e-5)


def test_relative_vectors_are_computed_once_for_all_pixels(monkeypatch):
    shapes = []
    forward = RelativePositionNetwork.forward
    monkeypatch.setattr(
        RelativePositionNetwork,
        "forward",
        lambda self, *arguments: shapes.append(tuple((out := forward(self, *arguments)).shape)) or out,
    )
    make_attention()(torch.randn(6, CHANNELS, 4, 4), make_slices())
    assert shapes == [(2, 2, 3, 3, HEAD_DIM)] * 3


def test_padding_and_the_others_do_not_see_each_other():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    attention, hidden_states = randomize(make_attention(masked_norm=True)), torch.randn(6, CHANNELS, 2, 2)
    alone = attention(hidden_states[:2], make_slices(POSITIONS[:1, :2]))
    changed = hidden_states.clone()
    changed[2] = 100 * torch.randn(CHANNELS, 2, 2)
    for given in (hidden_states, changed):
        result = attention(given, make_slices(valid=valid))
        torch.testing.assert_close(result[:2], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result[3:], attention(hidden_states, make_slices())[3:], atol=1e-5, rtol=1e-5)


def test_a_masked_norm_counts_the_marked_tokens_only():
    norm, hidden_states = randomize(MaskedGroupNorm(2, CHANNELS)), 5 + torch.randn(2, CHANNELS, 6)
    counted = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    result = norm(hidden_states, counted)
    torch.testing.assert_close(result[:1, :, counted[0]], norm(hidden_states[:1, :, counted[0]]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result[1], norm(hidden_states)[1], atol=1e-5, rtol=1e-5)
    assert (
        norm(hidden_states.half(), counted).dtype == torch.float32
        and norm.half()(hidden_states.half(), counted).isfinite().all()
    )


def test_untrained_attention_adds_nothing():
    hidden_states = 2 + torch.randn(6, CHANNELS, 2, 2)
    assert torch.equal(make_attention(pre_norm_residual=True)(hidden_states, make_slices()), hidden_states)
    published = make_attention()(hidden_states, make_slices())
    torch.testing.assert_close(published.unflatten(1, (2, -1)).mean((2, 3, 4)), torch.zeros(6, 2), atol=1e-5, rtol=0)
