import pytest
import torch
from conftest import make_unet
from goldens import load_golden

from voxdiff import WaveletUNet3DModel, convert_state_dict


@pytest.mark.parametrize("name", ["wdm", "cwdm"])
def test_published_network_agrees_with_the_official_one(name, tmp_path):
    meta, state, inputs, outputs = load_golden(f"{name}_unet")
    model = convert_state_dict(name, state, norm_num_groups=meta["config"]["model"]["num_groups"])
    model.save_pretrained(tmp_path)
    for candidate in (model, WaveletUNet3DModel.from_pretrained(tmp_path)):
        activations = {}
        for official, module in {
            "middle_block": candidate.mid_block.resnets[1],
            "output_blocks.2": candidate.up_blocks[0].upsamplers[0],
            "output_blocks.5": candidate.up_blocks[1].upsamplers[0],
        }.items():
            module.register_forward_hook(lambda _m, _i, out, key=official, kept=activations: kept.update({key: out}))
        with torch.no_grad():
            result = candidate(inputs["x"], torch.tensor(meta["config"]["timesteps"])).sample
        torch.testing.assert_close(result, outputs["y"], atol=meta["atol"], rtol=0)
        for key, value in activations.items():
            torch.testing.assert_close(value, outputs[f"act.{key}"], atol=meta["atol_act"], rtol=0)


@pytest.mark.parametrize("grid", [(8, 8, 8), (4, 6, 10)])
@pytest.mark.parametrize("skip_mode", ["additive", "concat"])
def test_output_has_the_input_grid(skip_mode, grid):
    unet = make_unet(16, 8, skip_mode=skip_mode)
    assert unet(torch.randn(2, 16, *grid), 5).sample.shape == (2, 8, *grid)


def test_time_changes_the_output_per_sample(unet):
    sample = torch.randn(1, 8, 4, 4, 4).expand(2, -1, -1, -1, -1)
    both = unet(sample, torch.tensor([3, 700])).sample
    torch.testing.assert_close(both[0:1], unet(sample[:1], 3).sample)
    torch.testing.assert_close(both[1:2], unet(sample[1:], 700).sample)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_the_default_is_the_published_configuration():
    with torch.device("meta"):
        assert sum(p.numel() for p in WaveletUNet3DModel().parameters()) == 57_914_824
        assert sum(p.numel() for p in WaveletUNet3DModel(32, skip_mode="concat").parameters()) == 81_511_048
        deep = WaveletUNet3DModel(block_out_channels=(64, 128, 128, 256, 256, 256))
        assert sum(p.numel() for p in deep.parameters()) == 83_158_728
        assert deep.size_divisor == 32


def test_a_fresh_network_predicts_zero():
    unet = WaveletUNet3DModel(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    assert not unet(torch.randn(1, 8, 4, 4, 4), 1).sample.any()


def test_gradient_checkpointing_gives_the_same_gradients(unet):
    sample = torch.randn(1, 8, 4, 4, 4)
    gradients = []
    for enable in (False, True):
        unet.zero_grad()
        unet.enable_gradient_checkpointing() if enable else unet.disable_gradient_checkpointing()
        unet.train()(sample, 7).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in unet.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_compiles_without_graph_breaks(unet):
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    sample = torch.randn(1, 8, 4, 4, 4)
    torch.testing.assert_close(compiled(sample, torch.tensor(9)).sample, unet(sample, 9).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(unet, dtype):
    sample = torch.randn(1, 8, 8, 8, 8)
    reference = unet(sample, 9).sample
    result = unet.to(dtype)(sample.to(dtype), 9).sample
    assert result.dtype == dtype
    assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_a_grid_the_depth_cannot_halve_raises():
    unet = make_unet(block_out_channels=(4, 4, 8))
    with pytest.raises(ValueError, match=r"divisible by 4: use 8 or 12 along y"):
        unet(torch.zeros(1, 8, 8, 10, 8), 0)
    with pytest.raises(ValueError, match=r"it takes \(batch, 8, x, y, z\)"):
        unet(torch.zeros(1, 7, 8, 8, 8), 0)


def test_bad_configurations_raise():
    with pytest.raises(ValueError, match="allowed are additive, concat"):
        WaveletUNet3DModel(skip_mode="wavelet")
    with pytest.raises(ValueError, match="divides every width"):
        WaveletUNet3DModel(block_out_channels=(64, 100))
