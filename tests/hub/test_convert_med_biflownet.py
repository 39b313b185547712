import argparse
import re

import pytest
import torch
from goldens import load_golden

from voxdiff.hub.convert import convert_state_dict
from voxdiff.hub.convert_med_biflownet import KEYS, MED_BIFLOWNET, read_checkpoint_file, unfuse
from voxdiff.models.biflownet_3d import BiFlowNet3DModel

OVERRIDES = {"norm_num_groups": 6, "num_dit_heads": 4}


def build(state, **overrides):
    return convert_state_dict("med-biflownet", state, **OVERRIDES, **overrides)


@pytest.fixture
def state():
    """The official network of three levels; its entries may be replaced."""
    return dict(load_golden("med_sampling")[1])


def published_names(token_size):
    with torch.device("meta"):
        model = BiFlowNet3DModel(token_size=token_size)
    tensors = model.state_dict()
    names = MED_BIFLOWNET.official_keys(list(tensors), dict(model.config))
    return model, {names[key]: (key, tensor) for key, tensor in tensors.items()}


@pytest.mark.parametrize("token_size", [1, 2])
def test_published_networks_keep_every_name_and_shape(token_size):
    model, table = published_names(token_size)
    official = {re.sub(r"\[[qkv]\]", "", name) for name in table}
    assert len(official) == 390
    config = MED_BIFLOWNET.read_config({name: tensor for name, (_, tensor) in table.items()})
    assert config == {key: model.config[key] for key in config}
    assert config["token_size"] == token_size and config["sub_volume_size"] == 8


def test_the_golden_layout_has_the_published_names():
    published = {re.sub(r"\[[qkv]\]", "", name) for name in published_names(1)[1]}
    assert set(load_golden("med_biflownet_class")[1]) == published


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "med_biflownet_class",
            {
                "in_channels": 8,
                "block_out_channels": (12, 12, 24, 48, 96),
                "attention_levels": (False, False, False, True, True),
                "num_class_embeds": 7,
                "token_size": 1,
                "sub_volume_size": 4,
                "num_mid_dit_layers": 1,
                "num_attention_heads": 2,
            },
        ),
        (
            "med_biflownet_uncond",
            {
                "in_channels": 4,
                "block_out_channels": (12, 12, 24),
                "attention_levels": (False, False, True),
                "num_class_embeds": None,
                "token_size": 2,
                "sub_volume_size": 4,
                "num_mid_dit_layers": 0,
                "num_attention_heads": 2,
            },
        ),
    ],
)
def test_configuration_is_read_off_the_tensors(name, expected):
    config = build(load_golden(name)[1]).config
    assert {key: config[key] for key in expected} == expected
    assert config["axis_order"] == "zxy" and config["attention_head_dim"] == 32


def test_joined_projections_are_parted_by_rows(state):
    parted = unfuse(state)
    joined = state["IntraPatchFlow_mid.0.attn.qkv.bias"]
    assert torch.equal(parted["IntraPatchFlow_mid.0.attn.qkv[k].bias"], joined[12:24])
    joined = state["mid_spatial_attn.fn.fn.to_qkv.weight"]
    assert torch.equal(parted["mid_spatial_attn.fn.fn.to_qkv[v].weight"], joined[128:])
    model = build(state)
    assert torch.equal(model.mid_block.attentions[0].to_v.weight, joined[128:])
    assert not model.training


def test_key_table_names_every_module_once():
    official, ours = zip(*KEYS, strict=True)
    assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


@pytest.mark.parametrize(
    "key",
    [
        "final_conv.1.bias",
        "init_conv.weight",
        "pos_embed",
        "IntraPatchFlow_mid.0.attn.qkv.bias",
        "ups.0.1.fn.norm.gamma",
        "mid_spatial_attn.fn.fn.to_qkv.weight",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "misshaped"])
def test_a_damaged_tensor_is_named(state, key, damage):
    tensor = state.pop(key)
    if damage == "misshaped":
        state[key] = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
    with pytest.raises(ValueError, match=re.escape(key.removesuffix(".weight").removesuffix(".bias"))) as error:
        build(state)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_an_extra_tensor_is_named(state):
    with pytest.raises(ValueError, match="1 unexpected, the first is loss_weight"):
        build({**state, "loss_weight": torch.zeros(4)})


@pytest.mark.parametrize(
    "key, reason",
    [
        ("controlnet.init_conv.weight", "is a ControlNet"),
        ("downs.0.5.weight", "is a ControlNet"),
        ("encoder.conv_first.weight", "convert it with 'med-autoencoder'"),
        ("module.init_conv.weight", "without the prefix"),
    ],
)
def test_other_networks_of_the_family_are_refused(state, key, reason):
    with pytest.raises(ValueError, match=reason):
        build({**state, key: torch.zeros(2, 2)})


def test_a_sub_volume_that_is_no_cube_is_refused(state):
    state["pos_embed"] = torch.zeros(1, 65, 12)
    with pytest.raises(ValueError, match="65 tokens a sub-volume, which is no cube"):
        build(state)


def test_the_averaged_weights_of_a_training_checkpoint_are_used(state, tmp_path):
    checkpoint = {
        "model": {key: torch.zeros_like(value) for key, value in state.items()},
        "ema": state,
        "scaler": {"scale": 65536.0},
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(ckpt="x", resolution=[32, 32, 32]),
        "epoch": 999,
    }
    path = tmp_path / "BiFlowNet_0453500.pt"
    torch.save(checkpoint, path)
    read = read_checkpoint_file(path)
    assert list(read) == list(state) and all(torch.equal(read[key], state[key]) for key in state)
    assert build(read).config["num_class_embeds"] == 3
