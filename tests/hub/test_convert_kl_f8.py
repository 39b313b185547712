import re
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL
from gem_checkpoints import checkpoint_state
from goldens import load_golden

from voxdiff.hub.convert import convert_state_dict
from voxdiff.hub.convert_kl_f8 import KEYS, KL_F8

load = cache(load_golden)


@pytest.fixture
def state():
    """The official autoencoder; its entries may be replaced."""
    return dict(load("gem_vae")[1])


def test_converted_autoencoder_agrees_with_the_official_one(state, tmp_path):
    meta, _, inputs, outputs = load("gem_vae")
    model = convert_state_dict("kl-f8", state)
    assert not model.training
    model.save_pretrained(tmp_path)
    for vae in (model, AutoencoderKL.from_pretrained(tmp_path)):
        with torch.no_grad():
            posterior = vae.encode(inputs["image"]).latent_dist
            reconstruction = vae.decode(posterior.mode()).sample
        assert (posterior.parameters - outputs["moments"]).abs().max() <= meta["atol"]
        assert (reconstruction - outputs["reconstruction_of_mean"]).abs().max() <= meta["atol"]


def test_the_published_network_keeps_every_name_and_shape():
    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        tensors = AutoencoderKL(**config).state_dict()
    names = KL_F8.official_keys(list(tensors), config)
    assert set(names.values()) == set(load("gem_vae")[1])
    assert sum(tensor.numel() for tensor in tensors.values()) == 83_653_863
    read = KL_F8.read_config({names[key]: tensor for key, tensor in tensors.items()})
    assert read == {**config, "in_channels": 3, "out_channels": 3, "sample_size": 512, "scaling_factor": 0.18215}


def test_key_table_names_every_module_once():
    official, ours = zip(*KEYS, strict=True)
    assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


def test_it_is_found_in_a_whole_checkpoint(state):
    whole = convert_state_dict("kl-f8", checkpoint_state({"out.2.bias": torch.zeros(4)}, state), scaling_factor=0.5)
    expected = convert_state_dict("kl-f8", {**state, "loss.logvar": torch.zeros(1)}).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in whole.state_dict().items())
    assert whole.config.scaling_factor == 0.5


@pytest.mark.parametrize(
    "key",
    [
        "encoder.down.0.block.0.conv1.weight",
        "decoder.mid.attn_1.q.weight",
        "post_quant_conv.weight",
        "decoder.norm_out.bias",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "misshaped"])
def test_a_damaged_tensor_is_named(state, key, damage):
    tensor = state.pop(key)
    if damage == "misshaped":
        state[key] = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
    with pytest.raises(ValueError, match=re.escape(key)) as error:
        convert_state_dict("kl-f8", state)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_an_autoencoder_with_attention_on_its_way_is_refused(state):
    with pytest.raises(ValueError, match=r"1 unexpected, the first is encoder.down.3.attn.0.norm.weight"):
        convert_state_dict("kl-f8", {**state, "encoder.down.3.attn.0.norm.weight": torch.zeros(128)})
    with pytest.raises(ValueError, match=r"has no tensor 'encoder.down.0"):
        convert_state_dict("kl-f8", {"out.2.bias": torch.zeros(4)})
