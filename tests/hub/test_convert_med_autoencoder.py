from functools import cache

import pytest
import torch
from goldens import load_golden

from voxdiff import AutoencoderPatchVolume, convert_state_dict
from voxdiff.hub.checkpoints_packed import read_packed_checkpoint
from voxdiff.hub.convert import CONVERTERS
from voxdiff.hub.convert_med_autoencoder import DISCRIMINATOR_KEYS, KEYS, split_attention

load = cache(load_golden)


@pytest.fixture
def state():
    return dict(load("med_autoencoder_4x")[1])


def convert(state, name="med-autoencoder", **overrides):
    overrides = {} if name == "med-discriminator" else {"norm_num_groups": 6, "patch_size": 16, **overrides}
    return convert_state_dict(name, state, **overrides)


def one_sentence(error):
    return "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("widths, tensors", [((48, 96, 192, 192), 234), ((48, 96, 96), 194)])
def test_published_networks_keep_every_name_and_shape(widths, tensors):
    """The official names at the published widths are those of the tiny golden of the same depth."""
    with torch.device("meta"):
        ours = AutoencoderPatchVolume(block_out_channels=widths).state_dict()
    converter = CONVERTERS["med-autoencoder"]
    names = converter.official_keys(list(ours), {})
    golden = load(f"med_autoencoder_{2 ** (len(widths) - 1)}x")[1]
    assert set(names.values()) == set(split_attention(golden))
    merged = {name.split("[")[0] for name in names.values()}
    assert len(merged) + 25 == tensors == len(golden)


def test_key_tables_name_every_module_once():
    for keys in (KEYS, DISCRIMINATOR_KEYS):
        official, ours = zip(*keys, strict=True)
        assert len(set(official)) == len(official) and len(set(ours)) == len(ours)


def test_the_configuration_is_read_off_the_tensors(state):
    config = convert(state).config
    expected = {
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 8,
        "block_out_channels": (12, 24, 24),
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "num_embeddings": 48,
        "patch_size": 16,
        "axis_order": "zxy",
        "latent_min": state["codebook.embeddings"].min().item(),
        "latent_max": state["codebook.embeddings"].max().item(),
    }
    assert {name: config[name] for name in expected} == expected
    discriminator = convert(state, "med-discriminator").config
    read = [discriminator[name] for name in ("in_channels", "base_channels", "num_layers", "axis_order")]
    assert read == [1, 4, 3, "zxy"]


def test_defaults_are_the_published_ones(state):
    with pytest.raises(ValueError, match="24 groups") as error:
        convert_state_dict("med-autoencoder", state)
    assert one_sentence(error)


def test_the_codebook_and_the_attention_land_in_their_places(state):
    model = convert(state)
    assert model.quantize.embedding.equal(state["codebook.embeddings"])
    assert model.quantize.cluster_size.equal(state["codebook.N"])
    assert model.quantize.embed_avg.equal(state["codebook.z_avg"])
    assert model.quantize.initialized
    attention = model.decoder.mid_block.attentions[0]
    joined = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    assert joined.equal(state["decoder.mid_block.attn.to_qkv.weight"])


def test_a_lightning_checkpoint_is_read_without_its_perceptual_loss(state, tmp_path):
    loss = {"perceptual_loss.perceptual_model.lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}
    torch.save({"state_dict": {**state, **loss}, "epoch": 3}, tmp_path / "PatchVolume_4x_s2.ckpt")
    tensors = read_packed_checkpoint(tmp_path / "PatchVolume_4x_s2.ckpt", "state_dict")
    for name in ("med-autoencoder", "med-discriminator"):
        ours, direct = convert(tensors, name).state_dict(), convert(state, name).state_dict()
        assert all(ours[key].equal(direct[key]) for key in direct)
    assert "volume_discriminator" not in str(convert(tensors).state_dict().keys())


@pytest.mark.parametrize(
    "name, key",
    [
        ("med-autoencoder", "decoder.final_block.2.bias"),
        ("med-autoencoder", "encoder.conv_first.weight"),
        ("med-autoencoder", "codebook.N"),
        ("med-autoencoder", "decoder.mid_block.attn.to_qkv.weight"),
        ("med-autoencoder", "decoder.conv_blocks.2.res1.resConv.weight"),
        ("med-discriminator", "volume_discriminator.model2.1.running_var"),
        ("med-discriminator", "volume_discriminator.model0.0.weight"),
    ],
)
@pytest.mark.parametrize("problem", ["missing", "misshaped"])
def test_a_missing_or_misshaped_tensor_is_named(problem, name, key, state):
    tensor = state.pop(key)
    if problem == "misshaped":
        state[key] = tensor.flatten()[:-1]
    with pytest.raises(ValueError, match=key.split(".to_qkv")[0].replace(".", r"\.")) as error:
        convert(state, name)
    assert one_sentence(error)


@pytest.mark.parametrize(
    "name, key",
    [
        ("med-autoencoder", "encoder.conv_blocks.1.res3.conv1.bias"),
        ("med-autoencoder", "image_discriminator.model0.0.weight"),
        ("med-discriminator", "volume_discriminator.model1.2.weight"),
        ("med-discriminator", "image_discriminator.model0.0.weight"),
    ],
)
def test_an_extra_tensor_is_named(name, key, state):
    state[key] = torch.zeros(4)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")) as error:
        convert(state, name)
    assert one_sentence(error)


def test_unknown_overrides_are_refused(state):
    with pytest.raises(ValueError, match=r"'axis_order'.*norm_num_groups") as error:
        convert(state, axis_order="xyz")
    assert one_sentence(error)
