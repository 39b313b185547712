import math

import pytest
import torch
from goldens import load_golden

from voxdiff.hub.convert import convert_state_dict
from voxdiff.models.slice_positions import position_context, slice_position


def test_the_published_generator_agrees_with_the_official_one():
    meta, state, inputs, outputs = load_golden("gem_slice_ldm")
    context = position_context(torch.tensor(meta["config"]["positions"]), 128)
    torch.testing.assert_close(context[:, 0], outputs["context"], atol=1e-4, rtol=0)
    generator = convert_state_dict("gem3d-slice", state)
    with torch.no_grad():
        result = generator(inputs["x"], torch.tensor(meta["config"]["timesteps"]), context).sample
    torch.testing.assert_close(result, outputs["y"], atol=meta["atol"], rtol=0)


def test_the_context_is_one_token_of_cosines_then_sines():
    context = position_context(torch.tensor([0.0, 0.5]), 8)
    assert context.shape == (2, 1, 8)
    assert context[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = [500 / 10000 ** (place / 4) for place in range(4)]
    expected = [*map(math.cos, angles), *map(math.sin, angles)]
    torch.testing.assert_close(context[1, 0], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule, last, middle", [("inclusive", 1, 0.5), ("official", 10 / 11, 5 / 11)])
def test_positions_follow_their_rule(rule, last, middle):
    assert [slice_position(index, 11, rule) for index in (0, 5, 10)] == [0, middle, last]
    assert slice_position(0, 1, rule) == 0


@pytest.mark.parametrize(
    "index, rule, message",
    [
        (3, "centred", "rule is 'centred'; allowed are inclusive, official"),
        (10, "inclusive", "Slice 10 lies outside a volume of 10 slices; choose one from 0 to 9"),
        (-1, "official", "Slice -1 lies outside"),
    ],
)
def test_bad_positions_raise(index, rule, message):
    with pytest.raises(ValueError, match=message):
        slice_position(index, 10, rule)
