import pytest
import torch
from gem_checkpoints import checkpoint_state

from voxdiff.hub.checkpoints_gem import holds_vae, select_unet, select_vae

UNET = {"input_blocks.0.0.weight": torch.zeros(2), "out.2.bias": torch.ones(2)}
AVERAGES = {key: tensor + 2 for key, tensor in UNET.items()}
VAE = {"encoder.conv_in.bias": torch.ones(1), "quant_conv.bias": torch.ones(3)}


def equal(received, expected):
    return list(received) == list(expected) and all(torch.equal(received[key], expected[key]) for key in expected)


def whole(**changes):
    return checkpoint_state(UNET, VAE, averages=AVERAGES, **changes)


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".")


def test_each_network_is_taken_out_of_a_whole_checkpoint():
    assert equal(select_unet(whole()), UNET)
    assert equal(select_unet(whole(), "ema"), AVERAGES)
    assert equal(select_vae(whole()), VAE)
    assert holds_vae(whole()) and not holds_vae(checkpoint_state(UNET))
    assert equal(select_vae(whole(copies_vae=False)), VAE)


def test_a_bare_state_dict_stays_as_it_is():
    assert equal(select_unet(UNET), UNET)
    assert equal(select_vae({**VAE, "loss.logvar": torch.zeros(1), "loss.discriminator.0.bias": torch.zeros(1)}), VAE)
    assert not holds_vae(VAE)


def test_an_autoencoder_of_the_masks_alone_is_refused():
    state = whole()
    state["cond_stage_model.quant_conv.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="masks have an autoencoder of their own") as error:
        select_vae(state)
    assert one_sentence(error)
    del state["cond_stage_model.quant_conv.bias"]
    with pytest.raises(ValueError, match="masks have an autoencoder of their own"):
        select_vae(state)
    assert equal(select_unet(state), UNET)


@pytest.mark.parametrize("select", [select_unet, select_vae])
def test_a_tensor_of_no_known_part_is_named(select):
    for stranger in ("scale_factor", "model.other.weight", "loss.logvar"):
        with pytest.raises(ValueError, match=f"has the tensor {stranger}, which belongs to no part") as error:
            select({**whole(), stranger: torch.zeros(1)})
        assert one_sentence(error)


def test_a_missing_part_is_named():
    with pytest.raises(ValueError, match=r"no tensors first_stage_model\.\*") as error:
        select_vae(checkpoint_state(UNET))
    assert one_sentence(error)
    with pytest.raises(ValueError, match=r"no tensors model\.diffusion_model\.\*"):
        select_unet(checkpoint_state({}, VAE))


def test_averages_that_are_absent_or_of_another_network_are_refused():
    for state in (UNET, checkpoint_state(UNET, VAE)):
        with pytest.raises(ValueError, match="no averaged weights") as error:
            select_unet(state, "ema")
        assert one_sentence(error)
    with pytest.raises(ValueError, match=r"model_ema.diffusion_modelout2bias is missing") as error:
        select_unet(checkpoint_state(UNET, averages={"input_blocks.0.0.weight": torch.zeros(2)}), "ema")
    assert one_sentence(error)
    with pytest.raises(ValueError, match=r"model_ema.diffusion_modelout9bias averages no tensor"):
        select_unet(checkpoint_state(UNET, averages={**AVERAGES, "out.9.bias": torch.zeros(2)}), "ema")
    with pytest.raises(ValueError, match="weights is 'mean'; choose 'raw' or 'ema'"):
        select_unet(whole(), "mean")
