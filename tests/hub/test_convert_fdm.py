import re
from functools import cache

import pytest
import torch
from goldens import load_golden

from voxdiff.hub.convert import CONVERTERS, convert_state_dict
from voxdiff.hub.convert_fdm import KEYS, split_projections
from voxdiff.models.unet_slice_conditioned import SliceConditionedUNetModel

load = cache(load_golden)
# FDM's own configuration for 128 pixels, its number of tensors and of parameters; and with one residual block a level.
PUBLISHED = {
    "two layers": ({"layers_per_block": 2}, 662, 118_952_833),
    "one layer": ({"layers_per_block": 1}, 432, 80_353_537),
}


def golden():
    """An official state dict of which entries may be replaced."""
    return dict(load("cdpm_unet")[1])


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_networks_keep_every_name_and_shape(network):
    changes, count, parameters = PUBLISHED[network]
    config = {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (128, 128, 256, 384, 512),
        "attention_levels": (False, False, False, True, True),
        "scale_shift_norm": True,
        **changes,
    }
    with torch.device("meta"):
        tensors = SliceConditionedUNetModel(**config).state_dict()
    names = CONVERTERS["fdm"].official_keys(list(tensors), config)
    assert len({re.sub(r"\[[qkv]\]", "", official) for official in names.values()}) == count
    assert sum(tensor.numel() for tensor in tensors.values()) == parameters
    assert CONVERTERS["fdm"].read_config({names[key]: tensor for key, tensor in tensors.items()}) == config


def test_key_table_names_every_module_once():
    official, ours = zip(*KEYS, strict=True)
    assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


def test_configuration_is_read_off_the_tensors():
    state = golden()
    config = convert_state_dict("fdm", state).config
    assert config.block_out_channels == (32, 32, 64) and config.attention_levels == (False, True, True)
    assert config.scale_shift_norm and config.layers_per_block == 1 and config.in_channels == 1
    for key, tensor in state.items():
        if ".emb_layers.1." in key:
            state[key] = tensor[: len(tensor) // 2]
    state["input_blocks.0.0.weight"] = torch.zeros(32, 4, 3, 3)
    state["out.2.weight"], state["out.2.bias"] = torch.zeros(3, 32, 3, 3), torch.zeros(3)
    config = convert_state_dict("fdm", state, num_attention_heads=8).config
    assert (config.in_channels, config.out_channels, config.num_attention_heads) == (3, 3, 8)
    assert not config.scale_shift_norm


def test_joined_projections_are_queries_then_keys_then_values():
    parted = split_projections({"a.qkv.bias": torch.arange(6.0), "b.proj_out.bias": torch.zeros(2)})
    assert {key: tensor.tolist() for key, tensor in parted.items()} == {
        "a.qkv[q].bias": [0, 1],
        "a.qkv[k].bias": [2, 3],
        "a.qkv[v].bias": [4, 5],
        "b.proj_out.bias": [0, 0],
    }
    with pytest.raises(ValueError, match=r"a.qkv.bias of shape \(7,\) is no projection") as error:
        split_projections({"a.qkv.bias": torch.zeros(7)})
    assert one_sentence(error)


@pytest.mark.parametrize(
    "key",
    [
        "out.2.bias",
        "input_blocks.0.0.weight",
        "input_blocks.3.1.temporal_attention.rpe_q.rpe_net.embed_distances.weight",
        "middle_block.1.spatial_attention.qkv.weight",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "misshaped"])
def test_a_damaged_tensor_is_named(key, damage):
    state = golden()
    tensor = state.pop(key)
    if damage == "misshaped":
        state[key] = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
    with pytest.raises(ValueError, match=re.escape(key.rpartition(".")[0])) as error:
        convert_state_dict("fdm", state)
    assert one_sentence(error)


def test_an_extra_tensor_is_named():
    with pytest.raises(ValueError, match="1 unexpected, the first is loss_weight"):
        convert_state_dict("fdm", {**golden(), "loss_weight": torch.zeros(4)})


@pytest.mark.parametrize(
    "key, reason",
    [
        ("input_blocks.3.1.temporal_attention.rpe_k.lookup_table_weight", "positions up in a table"),
        ("label_emb.weight", "class-conditional"),
        ("input_blocks.1.0.in_layers_tem.temporal_conv.weight", "convert it with 'gem3d-stage2'"),
        ("middle_block.1.transformer_blocks.0.norm1.weight", "convert it with 'gem3d-slice'"),
    ],
)
def test_other_networks_of_the_family_are_refused(key, reason):
    with pytest.raises(ValueError, match=reason) as error:
        convert_state_dict("fdm", {**golden(), key: torch.zeros(2, 2)})
    assert one_sentence(error)


def test_a_decoder_that_lacks_a_block_is_refused():
    state = {key: tensor for key, tensor in golden().items() if not key.startswith("output_blocks.5.")}
    with pytest.raises(ValueError, match="5 output_blocks, 2 of which upsample, which does not make 3 equal levels"):
        convert_state_dict("fdm", state)
