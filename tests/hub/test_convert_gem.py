import re
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from gem_checkpoints import checkpoint_state
from goldens import load_golden

from voxdiff.hub.convert import CONVERTERS, convert_state_dict
from voxdiff.hub.convert_gem import SLICE_KEYS, STAGE2_KEYS, split_heads
from voxdiff.models.unet_informed_slice import InformedSliceUNetModel

load = cache(load_golden)
GOLDENS = {"gem3d-stage1": "gem_stage1", "gem3d-stage2": "gem_pseudo3d", "gem3d-slice": "gem_slice_ldm"}
MODELS = {
    "gem3d-stage1": UNet2DModel,
    "gem3d-stage2": InformedSliceUNetModel,
    "gem3d-slice": UNet2DConditionModel,
}
# Configuration, number of official tensors and of parameters, as published.
PUBLISHED = {
    "gem3d-stage1": (
        {
            "in_channels": 12,
            "out_channels": 4,
            "block_out_channels": (224, 448, 672, 896),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
            "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
            "attention_head_dim": 32,
        },
        368,
        274.1e6,
    ),
    "gem3d-stage2": (
        {
            "in_channels": 12,
            "out_channels": 4,
            "block_out_channels": (224, 448, 672, 896),
            "layers_per_block": 2,
            "attention_levels": (False, True, True, True),
        },
        536,
        367.9e6,
    ),
    "gem3d-slice": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (224, 448, 896, 896),
            "layers_per_block": 2,
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            "cross_attention_dim": 128,
            "transformer_layers_per_block": 1,
            "attention_head_dim": (7, 14, 28, 28),
        },
        686,
        414.1e6,
    ),
}


def golden(name):
    """An official state dict of which entries may be replaced."""
    return dict(load(GOLDENS[name])[1])


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


def predict(name, model):
    """Network output in the layout of the golden file: slices first."""
    meta, _, inputs, outputs = load(GOLDENS[name])
    with torch.no_grad():
        if name == "gem3d-stage2":
            window = inputs["x"].permute(1, 2, 3, 0)[None]
            return model(window, meta["config"]["window_timesteps"][0]).sample[0].permute(3, 0, 1, 2)
        context = [outputs["context"][:, None]] if name == "gem3d-slice" else []
        return model(inputs["x"], torch.tensor(meta["config"]["timesteps"]), *context).sample


@pytest.mark.parametrize("name", GOLDENS)
def test_converted_network_agrees_with_the_official_one(name, tmp_path):
    meta, state, _, outputs = load(GOLDENS[name])
    model = convert_state_dict(name, state)
    assert isinstance(model, MODELS[name]) and not model.training
    model.save_pretrained(tmp_path)
    for network in (model, MODELS[name].from_pretrained(tmp_path)):
        assert (predict(name, network) - outputs["y"]).abs().max() <= meta["atol"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_keep_every_name_and_shape(name):
    config, count, parameters = PUBLISHED[name]
    with torch.device("meta"):
        tensors = MODELS[name](**config).state_dict()
    names = CONVERTERS[name].official_keys(list(tensors), config)
    assert len({re.sub(r"\[[qkv]\]", "", official) for official in names.values()}) == count
    assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(parameters, abs=5e4)
    assert CONVERTERS[name].read_config({names[key]: tensor for key, tensor in tensors.items()}) == config


@pytest.mark.parametrize("keys", [STAGE2_KEYS, SLICE_KEYS])
def test_key_table_names_every_module_once(keys):
    official, ours = zip(*keys, strict=True)
    assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


def test_joined_projections_are_parted_head_by_head():
    rows = torch.arange(12.0)
    state = {
        "a.1.qkv.bias": rows,
        "a.1.qkv_tem.weight": rows.reshape(12, 1, 1),
        "a.1.proj_out.weight": torch.zeros(4, 4, 1),
    }
    parted = split_heads(state, head_dim=2)
    assert parted["a.1.qkv[q].bias"].tolist() == [0, 1, 6, 7]
    assert parted["a.1.qkv[k].bias"].tolist() == [2, 3, 8, 9]
    assert parted["a.1.qkv_tem[v].weight"].tolist() == [[4], [5], [10], [11]]
    assert parted["a.1.proj_out.weight"].shape == (4, 4)
    with pytest.raises(ValueError, match=r"a.1.qkv.bias of shape \(12,\).* heads of 3 channels.*attention_head_dim"):
        split_heads(state, head_dim=3)


def test_the_width_of_heads_can_be_given():
    state = golden("gem3d-stage1")
    model = convert_state_dict("gem3d-stage1", state, attention_head_dim=16)
    projection = state["middle_block.1.qkv.weight"][:, :, 0].reshape(8, 3, 16, 128)
    assert torch.equal(model.mid_block.attentions[0].to_k.weight, projection[:, 1].flatten(0, 1))
    assert model.config.attention_head_dim == 16


def test_the_baseline_has_no_informed_slice():
    state = golden("gem3d-stage2")
    state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"][:, :8]
    assert convert_state_dict("gem3d-stage2", state, window=8).config.in_channels == 8


def test_averaged_weights_are_used_on_request():
    state = golden("gem3d-slice")
    averages = {key: tensor + 1 for key, tensor in state.items()}
    whole = checkpoint_state(state, averages=averages)
    for weights, expected in (("raw", state), ("ema", averages)):
        model = convert_state_dict("gem3d-slice", whole, weights=weights)
        assert torch.equal(model.conv_out.weight, expected["out.2.weight"])
    assert torch.equal(convert_state_dict("gem3d-slice", whole).conv_out.weight, state["out.2.weight"])


def test_averages_in_a_stage_2_checkpoint_are_refused():
    state = golden("gem3d-stage2")
    whole = checkpoint_state(state, averages=state)
    with pytest.raises(ValueError, match="left over from stage 1") as error:
        convert_state_dict("gem3d-stage2", whole, weights="ema")
    assert one_sentence(error)
    assert torch.equal(convert_state_dict("gem3d-stage2", whole).conv_out.weight, state["out.2.weight"])


@pytest.mark.parametrize(
    "name, key",
    [
        ("gem3d-stage1", "out.2.bias"),
        ("gem3d-stage1", "middle_block.1.qkv.weight"),
        ("gem3d-stage1", "output_blocks.3.0.skip_connection.weight"),
        ("gem3d-stage2", "out_tem.temporal_conv.weight"),
        ("gem3d-stage2", "input_blocks.3.1.proj_out_tem.weight"),
        ("gem3d-slice", "middle_block.1.transformer_blocks.0.attn1.to_k.weight"),
        ("gem3d-slice", "input_blocks.0.0.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "misshaped"])
def test_a_damaged_tensor_is_named(name, key, damage):
    state = golden(name)
    tensor = state.pop(key)
    if damage == "misshaped":
        state[key] = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
    with pytest.raises(ValueError, match=re.escape(key.rpartition(".")[0])) as error:
        convert_state_dict(name, state)
    assert one_sentence(error)


@pytest.mark.parametrize("name", GOLDENS)
def test_an_extra_tensor_is_named(name):
    with pytest.raises(ValueError, match="1 unexpected, the first is loss_weight") as error:
        convert_state_dict(name, {**golden(name), "loss_weight": torch.zeros(4)})
    assert one_sentence(error)


@pytest.mark.parametrize(
    "name, given, reason",
    [
        ("gem3d-stage1", "gem_pseudo3d", "has volumetric layers .* convert it with 'gem3d-stage2'"),
        ("gem3d-stage1", "gem_slice_ldm", "has cross-attention .* convert it with 'gem3d-slice'"),
        ("gem3d-stage2", "gem_stage1", "has no volumetric layers, as 'gem3d-stage2' networks have"),
        ("gem3d-slice", "gem_stage1", "has no cross-attention"),
        ("gem3d-stage1", "gem_vae", "has the layers of an autoencoder .* convert it with 'kl-f8'"),
        ("gem3d-stage1", "wdm_unet", r"input_blocks.0.0.weight' has the shape .* 4 dimensions"),
    ],
)
def test_another_network_is_refused(name, given, reason):
    with pytest.raises(ValueError, match=reason) as error:
        convert_state_dict(name, load(given)[1])
    assert one_sentence(error)


def test_a_list_of_blocks_that_lacks_an_upsampling_is_refused():
    state = {key: tensor for key, tensor in golden("gem3d-stage1").items() if not key.startswith("output_blocks.1.2.")}
    with pytest.raises(ValueError, match="8 output_blocks, 2 of which upsample, which does not make 3 equal levels"):
        convert_state_dict("gem3d-stage1", state)
