import logging

import pytest
import torch
from biflownets import DEEP, TINY, make_biflownet, make_sample, predict
from goldens import load_golden

from voxdiff.hub.convert import convert_state_dict
from voxdiff.models.axis_order import from_network, to_network
from voxdiff.models.biflownet_3d import BiFlowNet3DModel


def golden_model(name, axis_order):
    meta, state, inputs, outputs = load_golden(name)
    official = meta["config"]["model"]
    overrides = {"norm_num_groups": official["resnet_groups"], "num_dit_heads": official["DiT_num_heads"]}
    model = convert_state_dict("med-biflownet", state, axis_order=axis_order, **overrides)
    return model, meta, inputs, outputs


@pytest.mark.parametrize("axis_order", ["zxy", "xyz"])
@pytest.mark.parametrize("name", ["med_biflownet_class", "med_biflownet_uncond"])
def test_published_network_agrees_with_the_official_one(name, axis_order, tmp_path):
    model, meta, inputs, outputs = golden_model(name, axis_order)
    model.save_pretrained(tmp_path)
    labels = meta["config"]["labels"]
    for candidate in (model, BiFlowNet3DModel.from_pretrained(tmp_path)):
        modules = {"mid_block2": candidate.mid_block}
        modules |= {f"ups.{level}.4": block for level, block in enumerate(candidate.up_blocks[:2])}
        activations = {}
        for key, module in modules.items():
            module.register_forward_hook(lambda _m, _i, out, key=key, kept=activations: kept.update({key: out}))
        with torch.no_grad():
            result = candidate(
                from_network(inputs["x"], axis_order),
                torch.tensor(meta["config"]["timesteps"]),
                None if labels is None else torch.tensor(labels),
            ).sample
        torch.testing.assert_close(to_network(result, axis_order), outputs["y"], atol=meta["atol"], rtol=0)
        for key in outputs:
            if key.startswith("act."):
                torch.testing.assert_close(activations[key[4:]], outputs[key], atol=meta["atol_act"], rtol=0)


def test_the_default_is_the_published_network():
    for token_size, parameters, positions in ((1, 157_618_016, 36_864), (2, 157_769_216, 4_608)):
        with torch.device("meta"):
            model = BiFlowNet3DModel(token_size=token_size)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert sum(buffer.numel() for buffer in model.buffers()) == positions
        assert model.size_divisor == 8


@pytest.mark.parametrize("intra_patch", ["dit", "unet", None])
def test_a_batch_is_its_samples_one_by_one(intra_patch):
    model = make_biflownet(intra_patch=intra_patch)
    sample, timesteps, labels = make_sample(4, 8, 12, batch=2), torch.tensor([3, 700]), torch.tensor([2, 0])
    both = model(sample, timesteps, labels).sample
    assert both.shape == sample.shape
    for index in range(2):
        alone = model(sample[index : index + 1], timesteps[index], labels[index : index + 1]).sample
        torch.testing.assert_close(both[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_the_network_turns_its_axes_at_its_boundary():
    published, plain = make_biflownet(axis_order="zxy"), make_biflownet(axis_order="xyz")
    sample = make_sample(4, 8, 12)
    turned = predict(plain, sample.permute(0, 1, 4, 2, 3)).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(predict(published, sample), turned)
    assert (predict(plain, sample) - turned).abs().max() > 1e-3


@pytest.mark.parametrize("intra_patch", ["dit", "unet"])
def test_the_intra_patch_flow_is_silent_until_trained(intra_patch):
    torch.manual_seed(0)
    fresh = BiFlowNet3DModel(**{**TINY, "intra_patch": intra_patch})
    alone = BiFlowNet3DModel(**{**TINY, "intra_patch": None})
    alone.load_state_dict({key: value for key, value in fresh.state_dict().items() if "intra_patch" not in key})
    assert torch.equal(predict(fresh, make_sample()), predict(alone, make_sample()))
    for level in range(2):
        for heads in (fresh.intra_patch_flow.in_heads, fresh.intra_patch_flow.out_heads):
            before = predict(fresh, make_sample())
            torch.nn.init.normal_(heads[level].proj_out.weight)
            assert (predict(fresh, make_sample()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("intra_patch", ["dit", "unet", None])
def test_every_weight_is_used(intra_patch):
    model = make_biflownet(intra_patch=intra_patch, scalar_conditions={"age": {"place": 0, "mean": 50, "std": 10}})
    labels, scalars = torch.tensor([0, 1, 2]), torch.tensor([[40.0], [50.0], [60.0]])
    model(make_sample(batch=3), 9, labels, scalars).sample.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_time_and_grid_move_the_output():
    model, sample = make_biflownet(), make_sample()
    assert (predict(model, sample, 3) - predict(model, sample, 700)).abs().max() > 1e-3
    other_scale = make_biflownet(resolution_scale=8)
    assert (predict(model, sample) - predict(other_scale, sample)).abs().max() > 1e-3


@pytest.mark.parametrize("axis_order", ["zxy", "xyz"])
def test_residuals_join_the_saved_maps_and_the_middle(axis_order):
    model = make_biflownet(**DEEP, axis_order=axis_order)
    sample = make_sample(4, 6, 8)
    shapes = [(1, 4, 4, 6, 8), (1, 4, 4, 6, 8), (1, 8, 2, 3, 4)]
    residuals, middle = [torch.randn(shape) for shape in shapes], torch.randn(shapes[-1])
    plain = predict(model, sample)
    result = predict(model, sample, down_block_additional_residuals=residuals, mid_block_additional_residual=middle)
    for level, residual in enumerate(residuals):
        alone = [residual if place == level else torch.zeros_like(other) for place, other in enumerate(residuals)]
        assert (predict(model, sample, down_block_additional_residuals=alone) - plain).abs().max() > 1e-3

    def add_to_second_map(residual):
        turned = to_network(residual, axis_order)
        return lambda _module, _inputs, output: (output[0], (output[1][0], output[1][1] + turned))

    for block, residual in zip(model.down_blocks, residuals, strict=True):
        block.register_forward_hook(add_to_second_map(residual))
    model.mid_block.register_forward_hook(lambda _m, _i, output: output + to_network(middle, axis_order))
    torch.testing.assert_close(predict(model, sample), result)


@pytest.mark.parametrize("changes", [{}, {"intra_patch": "unet"}, DEEP])
def test_gradient_checkpointing_gives_the_same_gradients(changes):
    model = make_biflownet(**changes).train()
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.enable_gradient_checkpointing() if enable else model.disable_gradient_checkpointing()
        model(make_sample(), 7, torch.tensor([1])).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize("intra_patch", ["dit", "unet", None])
def test_compiles_without_graph_breaks(intra_patch):
    condition = {"null_condition": True, "scalar_conditions": {"age": {"place": 0, "mean": 50, "std": 10}}}
    model = make_biflownet(intra_patch=intra_patch, **condition)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    arguments = (make_sample(), torch.tensor(9), torch.tensor([-1]), torch.tensor([[42.0]]))
    torch.testing.assert_close(compiled(*arguments).sample, model(*arguments).sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("intra_patch", ["dit", "unet", None])
def test_half_precision_stays_close(intra_patch, dtype, caplog):
    model = make_biflownet(intra_patch=intra_patch)
    reference = predict(model, make_sample(8, 8, 8))
    caplog.set_level(logging.ERROR, "diffusers")
    result = predict(model.to(dtype), make_sample(8, 8, 8).to(dtype))
    assert result.dtype == dtype
    assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.parametrize(
    "changes, divisor, message",
    [
        ({}, 4, "divisible by 4 .*: use 4 or 8 along y"),
        ({"intra_patch": None}, 1, None),
        (DEEP, 2, "divisible by 2 .*: use 4 or 6 along y"),
        ({**DEEP, "block_out_channels": (4,) * 4, "attention_levels": (False,) * 4}, 4, "use 4 or 8 along y"),
    ],
)
def test_a_grid_that_does_not_fit_names_the_nearest_sizes(changes, divisor, message):
    model = make_biflownet(**changes)
    assert model.size_divisor == divisor
    if message is None:
        assert predict(model, make_sample(4, 5, 3)).shape == (1, 2, 4, 5, 3)
        return
    with pytest.raises(ValueError, match=message):
        predict(model, make_sample(4, 5, 4))


def test_depth_and_sub_volume_divide_the_grid_together():
    with torch.device("meta"):
        assert BiFlowNet3DModel(sub_volume_size=12, token_size=3).size_divisor == 24


def test_samples_and_residuals_that_do_not_fit_raise():
    model = make_biflownet()
    with pytest.raises(ValueError, match=r"it takes \(batch, 2, x, y, z\)"):
        predict(model, torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match="are 1 tensors; pass one for each of the 2 levels"):
        predict(model, make_sample(), down_block_additional_residuals=[torch.zeros(1, 6, 4, 8, 4)])
    wrong = [torch.zeros(1, 6, 4, 8, 4), torch.zeros(1, 6, 4, 8, 1)]
    with pytest.raises(ValueError, match=r"residuals\[1\] has shape \(1, 6, 4, 8, 1\); pass .* \(1, 6, 4, 8, 4\)"):
        predict(model, make_sample(), down_block_additional_residuals=wrong)
    with pytest.raises(ValueError, match="mid_block_additional_residual has shape"):
        predict(model, make_sample(), mid_block_additional_residual=torch.zeros(1, 6, 2, 2, 2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_out_channels": (6, 12)}, r"\(6, 12\); give at least two widths, the first two of which are equal"),
        ({"block_out_channels": (6,)}, "at least two widths"),
        ({"block_out_channels": (2, 2), "norm_num_groups": 1}, "at least 4"),
        ({"attention_levels": (True,)}, "1 values for 2 levels"),
        ({"norm_num_groups": 4}, "divides every width"),
        ({"num_class_embeds": 0}, "at least 1, or None"),
        ({"intra_patch": "transformer"}, "allowed are dit, unet and None"),
        ({"token_size": 3}, "token_size so that it divides sub_volume_size"),
        ({"num_dit_heads": 4}, "by its 4 heads"),
        ({"block_out_channels": (9, 9)}, "divisible by 6"),
        ({"axis_order": "yxz"}, "axis_order is 'yxz'"),
    ],
)
def test_bad_configurations_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        BiFlowNet3DModel(**{**TINY, **changes})
