import logging

import pytest
import torch
from diffusers import UNet2DModel
from goldens import load_golden
from safetensors.torch import load_file, save_file

from voxdiff import InformedSliceUNetModel
from voxdiff.hub.convert import convert_state_dict
from voxdiff.models.layers_informed_slice import SliceConv
from voxdiff.models.unet_informed_slice import is_volumetric

TINY = {"block_out_channels": (4, 8), "attention_levels": (False, True), "layers_per_block": 1}
TINY |= {"attention_head_dim": 4, "norm_num_groups": 2}
SLICE_MODEL = {"in_channels": 12, "out_channels": 4, "block_out_channels": (4, 8), "layers_per_block": 1}
SLICE_MODEL |= {"attention_head_dim": 4, "norm_num_groups": 2}
SLICE_MODEL |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def make_model(**changes):
    """A tiny network as if trained: no layer is zero or the identity."""
    torch.manual_seed(0)
    model = InformedSliceUNetModel(**{**TINY, **changes})
    for parameter in model.volumetric_parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def make_sample(batch=1, slices=5, grid=(4, 6), channels=12):
    return torch.randn(batch, channels, *grid, slices, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predict(model, sample, timestep=417, **conditions):
    return model(sample, timestep, **conditions).sample


def as_slices(window):
    """``(batch, channels, x, y, slices)`` as ``(batch * slices, channels, x, y)``."""
    return window.permute(0, 4, 1, 2, 3).flatten(0, 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_published_network_agrees_with_the_official_one(layout, tmp_path):
    meta, state, inputs, outputs = load_golden("gem_pseudo3d")
    model = convert_state_dict("gem3d-stage2", state).to(memory_format=layout)
    model.save_pretrained(tmp_path)
    sample, timestep = inputs["x"].permute(1, 2, 3, 0)[None], torch.tensor(meta["config"]["window_timesteps"])
    for candidate in (model, InformedSliceUNetModel.from_pretrained(tmp_path)):
        result = predict(candidate, sample, timestep)
        torch.testing.assert_close(as_slices(result), outputs["y"], atol=meta["atol"], rtol=0)


def test_slice_model_agrees_with_the_official_one_and_so_do_windows_of_one_slice():
    meta, state, inputs, outputs = load_golden("gem_stage1")
    slice_model, timesteps = convert_state_dict("gem3d-stage1", state), torch.tensor(meta["config"]["timesteps"])
    with torch.no_grad():
        alone = slice_model(inputs["x"], timesteps).sample
    windows = predict(InformedSliceUNetModel.from_slice_model(slice_model), inputs["x"][..., None], timesteps)
    for result in (alone, windows[..., 0]):
        torch.testing.assert_close(result, outputs["y"], atol=meta["atol"], rtol=0)


def test_the_default_is_the_published_network():
    with torch.device("meta"):
        model = InformedSliceUNetModel()
    assert sum(parameter.numel() for parameter in model.parameters()) == 367_878_616
    assert sum(parameter.numel() for parameter in model.volumetric_parameters()) == 93_802_292
    assert sum(isinstance(module, SliceConv) for module in model.modules()) == 52
    assert model.size_divisor == 8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("slices", [1, 5, 24])
@pytest.mark.parametrize("indicator", [False, True])
def test_untrained_volumetric_layers_change_nothing(indicator, slices, layout):
    slice_model = UNet2DModel(**SLICE_MODEL).to(memory_format=layout).eval()
    model = InformedSliceUNetModel.from_slice_model(slice_model, known_slice_indicator=indicator, window=slices)
    model.to(memory_format=layout)
    sample, timesteps = make_sample(batch=2, slices=slices), torch.tensor([3, 800])
    known = {"known": torch.ones(2, slices)} if indicator else {}
    with torch.no_grad():
        alone = slice_model(as_slices(sample), timesteps.repeat_interleave(slices)).sample
    # On some processors the attention kernel rounds by the layout of its input.
    torch.testing.assert_close(as_slices(predict(model, sample, timesteps, **known)), alone, atol=2e-6, rtol=0)
    assert model.config["window"] == slices


@pytest.mark.parametrize("slices", [1, 5, 24])
def test_a_batch_is_its_windows_one_by_one(slices):
    model = make_model(known_slice_indicator=True)
    sample, timesteps = make_sample(batch=3, slices=slices), torch.tensor([3, 500, 999])
    known = torch.rand(3, slices) < 0.5
    together = predict(model, sample, timesteps, known=known)
    assert together.shape == (3, 4, 4, 6, slices)
    for index, alone in enumerate(sample.split(1)):
        result = predict(model, alone, timesteps[index], known=known[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], result, atol=1e-5, rtol=1e-5)


def test_x_and_y_take_their_own_roles():
    model, turned = make_model(), make_model()
    for parameter in turned.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.transpose(2, 3).contiguous()
    sample = make_sample(grid=(8, 2))
    result = predict(turned, sample.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(result, predict(model, sample), atol=1e-5, rtol=1e-5)
    assert (predict(model, sample.transpose(2, 3)).transpose(2, 3) - result).abs().max() > 1e-3


def test_only_the_convolutions_know_the_order_of_the_slices():
    model, turned = make_model(), make_model()
    for parameter in turned.parameters():
        if parameter.ndim == 3:
            parameter.data = parameter.data.flip(2)
    sample = make_sample()
    result = predict(turned, sample.flip(4)).flip(4)
    torch.testing.assert_close(result, predict(model, sample), atol=1e-5, rtol=1e-5)
    assert (predict(model, sample.flip(4)).flip(4) - result).abs().max() > 1e-3


def test_every_slice_sees_the_whole_window():
    model, sample = make_model(), make_sample(slices=24)
    changed = sample.clone()
    changed[..., 0] += 1
    differences = (predict(model, changed) - predict(model, sample)).abs().amax(dim=(0, 1, 2, 3))
    assert (differences > 1e-5).all()


def test_the_indicator_marks_single_slices():
    model, sample = make_model(known_slice_indicator=True), make_sample(batch=2)
    none, one = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    one[1, 3] = True
    differences = (predict(model, sample, known=one) - predict(model, sample, known=none)).abs().amax(dim=(1, 2, 3))
    assert differences[0].max() == 0
    assert differences[1].argmax() == 3


def test_the_baseline_has_no_informed_slice():
    model = make_model(in_channels=8)
    assert predict(model, make_sample(channels=8)).shape == (1, 4, 4, 6, 5)
    with pytest.raises(ValueError, match=r"it takes \(batch, 8, x, y, slices\)"):
        predict(model, make_sample())


def test_every_weight_is_used_and_time_moves_the_output():
    model, sample = make_model(known_slice_indicator=True), make_sample()
    known = torch.tensor([[1, 0, 0, 0, 1]])
    assert (predict(model, sample, 3, known=known) - predict(model, sample, 700, known=known)).abs().max() > 1e-3
    model(sample, 9, known=known).sample.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_volumetric_tuning_leaves_the_slice_model_as_it_was():
    slice_model = UNet2DModel(**SLICE_MODEL)
    model = InformedSliceUNetModel.from_slice_model(slice_model, known_slice_indicator=True)
    model.freeze_spatial()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters()} - trained == set(slice_model.state_dict())
    assert trained == {name for name in model.state_dict() if is_volumetric(name)}
    optimizer = torch.optim.SGD(model.volumetric_parameters(), lr=0.1)
    model(make_sample(), 9, known=torch.ones(1, 5)).sample.square().mean().backward()
    optimizer.step()
    for name, tensor in slice_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.conv_in_known.weight.any()


def test_gradient_checkpointing_gives_the_same_gradients():
    model = make_model().train()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.enable_gradient_checkpointing() if enable else model.disable_gradient_checkpointing()
        model(make_sample(), 7).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model = make_model(known_slice_indicator=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for slices in (5, 6):
        sample, known = make_sample(2, slices), torch.zeros(2, slices)
        result = compiled(sample, torch.tensor([9, 700]), known=known).sample
        torch.testing.assert_close(result, model(sample, torch.tensor([9, 700]), known=known).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype, caplog):
    model, sample, known = make_model(known_slice_indicator=True), make_sample(), torch.tensor([[1, 0, 0, 0, 0]])
    reference = predict(model, sample, known=known)
    caplog.set_level(logging.ERROR, "diffusers")
    result = predict(model.to(dtype), sample.to(dtype), known=known)
    assert result.dtype == dtype
    assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_weights_are_loaded_strictly(tmp_path):
    model = make_model(known_slice_indicator=True)
    model.save_pretrained(tmp_path)
    loaded = InformedSliceUNetModel.from_pretrained(tmp_path)
    known = torch.tensor([[0, 1, 0, 0, 0]])
    assert torch.equal(predict(loaded, make_sample(), known=known), predict(model, make_sample(), known=known))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["down_blocks.1.attentions.0.vol.to_out.0.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing keys, the first is down_blocks\.1\.attentions\.0\.vol\.to_out"):
        InformedSliceUNetModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 12, 4, 6), r"shape \(1, 12, 4, 6\); it takes \(batch, 12, x, y, slices\)"),
        ((1, 4, 4, 6, 5), r"it takes \(batch, 12, x, y, slices\)"),
        ((1, 12, 4, 6, 0), r"it takes \(batch, 12, x, y, slices\)"),
        ((1, 12, 5, 6, 5), "divisible by 2: use 4 or 6 along x"),
        ((1, 12, 4, 1, 5), "divisible by 2: use 2 along y"),
    ],
)
def test_samples_that_do_not_fit_raise(shape, message):
    with pytest.raises(ValueError, match=message):
        predict(make_model(), torch.zeros(shape))


def test_known_slices_are_given_exactly_where_they_are_asked_for():
    with pytest.raises(ValueError, match="known was given to a network without an indicator"):
        predict(make_model(), make_sample(), known=torch.zeros(1, 5))
    model = make_model(known_slice_indicator=True)
    with pytest.raises(ValueError, match=r"got no known; pass \(1, 5\), one value a slice, all zero"):
        predict(model, make_sample())
    with pytest.raises(ValueError, match=r"got known of shape \(5,\); pass \(1, 5\)"):
        predict(model, make_sample(), known=torch.zeros(5))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_levels": (True,)}, "1 values for 2 levels"),
        ({"norm_num_groups": 3}, "divides every width"),
        ({"attention_head_dim": 3}, r"widths \[8\] cannot be split into heads of width 3"),
        ({"attention_head_dim": None}, "heads of width None"),
        ({"attention_levels": (True, False), "attention_head_dim": 8}, r"widths \[4, 8\] cannot be split"),
        ({"layers_per_block": 0}, "layers_per_block is 0; give at least 1"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_bad_configurations_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        InformedSliceUNetModel(**{**TINY, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freq_shift": 1}, "has freq_shift=1, but .* with freq_shift=0 only"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='default' only"),
        ({"num_class_embeds": 2}, "num_class_embeds=None only"),
        ({"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}, "down_block_types="),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D")}, "up_block_types="),
    ],
)
def test_slice_models_of_another_kind_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        InformedSliceUNetModel.from_slice_model(UNet2DModel(**{**SLICE_MODEL, **changes}))
