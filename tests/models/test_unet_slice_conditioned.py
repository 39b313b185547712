import logging

import pytest
import torch
from goldens import load_golden
from safetensors.torch import load_file, save_file
from slice_conditioned_unets import TINY, make_slice_conditioned_unet, make_slices
from torch.utils.flop_counter import FlopCounterMode

from voxdiff import SliceConditionedUNetModel, convert_state_dict
from voxdiff.schedulers import make_scheduler

BOTH = {"interpolate_known": True, "slice_convolution": True, "patch_size": 2}


@torch.no_grad()
def predict(model, slices, timestep=417, **options):
    return model(slices["sample"], timestep, **{k: v for k, v in slices.items() if k != "sample"}, **options).sample


def at_targets(output, known):
    """The slices of the slots that are not known: ``(targets, channels, x, y)``."""
    return output.permute(0, 4, 1, 2, 3)[~known.bool()]


def golden_slices(inputs, config):
    """Arguments of the network; an official window has its slots first."""
    sample, known_slices = (inputs[name].permute(0, 2, 3, 4, 1) for name in ("x", "x0"))
    known, positions = torch.tensor(config["observed"]), torch.tensor(config["frame_indices"])
    return {"sample": sample, "known_slices": known_slices, "known": known, "positions": positions}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_network_agrees_with_the_official_one(layout, tmp_path):
    meta, state, inputs, outputs = load_golden("cdpm_unet")
    model = convert_state_dict("fdm", state).to(memory_format=layout)
    model.save_pretrained(tmp_path)
    slices, timesteps = golden_slices(inputs, meta["config"]), torch.tensor(meta["config"]["timesteps"])
    expected = {name: output.permute(0, 2, 3, 4, 1) for name, output in outputs.items()}
    nothing = {"sample": slices["sample"], "positions": slices["positions"]}
    for candidate in (model, SliceConditionedUNetModel.from_pretrained(tmp_path)):
        everything = predict(candidate, slices, timesteps, targets_only=False)
        torch.testing.assert_close(everything, expected["y"], atol=meta["atol"], rtol=0)
        targets = at_targets(predict(candidate, slices, timesteps), slices["known"])
        torch.testing.assert_close(targets, at_targets(expected["y"], slices["known"]), atol=meta["atol"], rtol=0)
        unobserved = predict(candidate, nothing, timesteps)
        torch.testing.assert_close(unobserved, expected["y_nothing_observed"], atol=meta["atol"], rtol=0)


def test_a_stage_agrees_with_the_official_one(monkeypatch):
    meta, state, inputs, outputs = load_golden("cdpm_stage")
    model, scheduler = convert_state_dict("fdm", state), make_scheduler("fdm")
    slices = golden_slices({**inputs, "x": inputs["noise0"]}, meta["config"])
    draws = iter(inputs[f"noise{step}"].permute(0, 2, 3, 4, 1) for step in range(1, 13))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws))
    scheduler.set_timesteps(timesteps=meta["facts"]["timestep_map"][::-1])
    for timestep in scheduler.timesteps:
        prediction = predict(model, slices, timestep)
        slices["sample"] = scheduler.step(prediction, timestep, slices["sample"]).prev_sample
    result, expected = slices["sample"], outputs["sample"].permute(0, 2, 3, 4, 1)
    known = slices["known"]
    torch.testing.assert_close(at_targets(result, known), at_targets(expected, known), atol=meta["atol"], rtol=0)


def test_the_default_is_the_network_of_fdm_for_128_pixels():
    with torch.device("meta"):
        assert sum(p.numel() for p in SliceConditionedUNetModel().parameters()) == 118_952_833
        assert sum(p.numel() for p in SliceConditionedUNetModel(layers_per_block=1).parameters()) == 80_353_537
        assert SliceConditionedUNetModel().size_divisor == 16


@pytest.mark.slow
def test_dropping_known_slots_early_spares_30_percent_of_the_published_network():
    def count(**options):
        sample, per_slot = torch.zeros(1, 1, 128, 128, 20), torch.zeros(1, 20)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(sample, 9, positions=per_slot, known_slices=sample, known=per_slot, **options)
        return counter.get_total_flops()

    with torch.device("meta"):
        model = SliceConditionedUNetModel()
        whole, spared = count(targets_only=False), count(num_targets=10)
        model = SliceConditionedUNetModel(slice_convolution=True)
        convolved = count(targets_only=False)
    assert whole == pytest.approx(2.71e12, rel=1e-3)
    assert 1 - spared / whole == pytest.approx(0.309, abs=1e-3)
    assert convolved / whole - 1 == pytest.approx(0.025, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_levels": (True, True)},
        {"attention_levels": (True, False)},
        {"attention_levels": (False, False)},
        BOTH,
        {"block_out_channels": (4, 8, 8), "attention_levels": (False, True, False), "layers_per_block": 2},
    ],
)
def test_predicting_targets_only_is_exact(changes):
    model, slices = make_slice_conditioned_unet(**changes), make_slices(grid=(4, 8))
    known = slices["known"]
    whole = predict(model, slices, targets_only=False)
    for options in ({}, {"num_targets": 7}):
        result = predict(model, slices, **options)
        torch.testing.assert_close(at_targets(result, known), at_targets(whole, known), atol=1e-5, rtol=0)
        assert not at_targets(result, ~known).any()
    assert at_targets(whole, ~known).any()


def test_predicting_targets_only_gives_the_same_gradients():
    model, slices = make_slice_conditioned_unet(), make_slices()
    gradients = []
    for targets_only in (False, True):
        model.zero_grad()
        arguments = {key: value for key, value in slices.items() if key != "sample"}
        output = model(slices["sample"], 9, **arguments, targets_only=targets_only).sample
        at_targets(output, slices["known"]).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, spared in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, spared, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, BOTH])
@pytest.mark.parametrize("hidden", ["sample", "known_slices"])
def test_what_is_hidden_has_no_influence(hidden, changes):
    model, slices = make_slice_conditioned_unet(**changes), make_slices()
    changed = {**slices, hidden: slices[hidden].clone()}
    marked = slices["known"] if hidden == "sample" else ~slices["known"]
    changed[hidden].permute(0, 4, 1, 2, 3)[marked] = torch.nan
    assert torch.equal(predict(model, changed, targets_only=False), predict(model, slices, targets_only=False))
    shown = {**slices, hidden: slices[hidden] + 1}
    assert (predict(model, shown) - predict(model, slices)).abs().max() > 1e-3


def test_being_known_is_told():
    model, slices = make_slice_conditioned_unet(), make_slices()
    same = {**slices, "known_slices": slices["sample"]}
    none = {**same, "known": torch.zeros_like(slices["known"])}
    assert (predict(model, same, targets_only=False) - predict(model, none)).abs().max() > 1e-3
    assert torch.equal(predict(model, none), predict(model, {key: slices[key] for key in ("sample", "positions")}))


def test_only_distances_count():
    model, slices = make_slice_conditioned_unet(), make_slices()
    reference = predict(model, slices)
    assert torch.equal(predict(model, {**slices, "positions": slices["positions"] + 31}), reference)
    moved = predict(model, {**slices, "positions": slices["positions"] + 0.37})
    torch.testing.assert_close(moved, reference, atol=1e-5, rtol=0)
    for changed in (-slices["positions"], slices["positions"] * 1.5):
        assert (predict(model, {**slices, "positions": changed}) - reference).abs().max() > 1e-3


def test_absolute_positions_count_once_trained():
    fresh = SliceConditionedUNetModel(**TINY, position_embedding="relative+absolute", position_scale=63.0)
    torch.nn.init.normal_(fresh.conv_out.weight)
    relative, slices = SliceConditionedUNetModel(**TINY), make_slices()
    relative.load_state_dict({key: fresh.state_dict()[key] for key in relative.state_dict()})
    assert torch.equal(predict(fresh, slices), predict(relative, slices))
    trained = make_slice_conditioned_unet(position_embedding="relative+absolute", position_scale=63.0)
    moved = {**slices, "positions": slices["positions"] + 0.5}
    assert (predict(trained, moved) - predict(trained, slices)).abs().max() > 1e-3
    halved = make_slice_conditioned_unet(position_embedding="relative+absolute", position_scale=31.5)
    assert (predict(trained, slices) - predict(halved, slices)).abs().max() > 1e-3


def test_the_network_sees_what_interpolation_gives():
    model, slices = make_slice_conditioned_unet(interpolate_known=True), make_slices(batch=1)
    blind = make_slice_conditioned_unet(interpolate_known=True)
    with torch.no_grad():
        blind.conv_in.weight[:, 2:].zero_()
    assert model.conv_in.in_channels == 4
    assert (predict(model, slices) - predict(blind, slices)).abs().max() > 1e-3
    unknown = {name: slices[name] for name in ("sample", "positions")}
    assert torch.equal(predict(model, unknown), predict(blind, unknown))


def test_neighbours_are_seen_where_nothing_attends():
    changes = {"attention_levels": (False, False), "slice_convolution": True}
    model, slices = make_slice_conditioned_unet(**changes), make_slices()
    for attention in model.mid_block.attentions:
        torch.nn.init.zeros_(attention.slice_attention.to_out[0].weight)
        torch.nn.init.zeros_(attention.slice_attention.to_out[0].bias)
    moved = {**slices, "positions": slices["positions"] * 1.5}
    assert (predict(model, moved) - predict(model, slices)).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{}, BOTH])
def test_the_order_of_the_slots_means_nothing(changes):
    model, slices, order = make_slice_conditioned_unet(**changes), make_slices(), torch.tensor([3, 0, 5, 1, 4, 2])
    turned = {name: value[..., order] for name, value in slices.items()}
    torch.testing.assert_close(predict(model, turned), predict(model, slices)[..., order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, BOTH])
def test_a_batch_is_its_samples_one_by_one(changes):
    model, slices, timesteps = make_slice_conditioned_unet(**changes), make_slices(batch=3), torch.tensor([3, 500, 999])
    together = predict(model, slices, timesteps)
    for index in range(3):
        alone = {name: value[index : index + 1] for name, value in slices.items()}
        result = predict(model, alone, timesteps[index])
        torch.testing.assert_close(together[index : index + 1], result, atol=1e-5, rtol=1e-5)


def test_every_target_sees_every_slot():
    model, slices = make_slice_conditioned_unet(), make_slices(batch=1)
    for slot in range(6):
        changed = {name: slices[name].clone() for name in slices}
        for name in ("sample", "known_slices"):
            changed[name][..., slot] += 1
        moved = (predict(model, changed) - predict(model, slices)).abs().amax((0, 1, 2, 3))
        assert (moved[~slices["known"][0]] > 1e-5).all()


@pytest.mark.parametrize(("masked_norm", "changes"), [(True, {}), (True, BOTH), (False, {})])
def test_padding_leaks_through_the_published_norm_only(masked_norm, changes):
    model, slices = (
        make_slice_conditioned_unet(masked_norm=masked_norm, **changes),
        make_slices(),
    )  # slot 4 is known, and padding
    valid = torch.ones(2, 6)
    valid[0, 4:] = 0
    reference, changed = predict(model, slices, valid=valid), {**slices, "sample": slices["sample"].clone()}
    changed["sample"][0, ..., 5] += 7
    assert not reference[0, ..., 4:].any()
    assert torch.equal(predict(model, changed, valid=valid), reference) == masked_norm
    alone = {name: value[:1, ..., :4] for name, value in slices.items()}
    difference = (predict(model, alone) - reference[:1, ..., :4]).abs().max()
    assert difference < 1e-5 if masked_norm else difference > 1e-3


def test_the_residual_can_be_taken_before_the_norm():
    slices = make_slices()
    published, plain = make_slice_conditioned_unet(), make_slice_conditioned_unet(pre_norm_residual=True)
    assert (predict(published, slices) - predict(plain, slices)).abs().max() > 1e-3


def test_every_weight_is_used_and_time_moves_the_output():
    model, slices = make_slice_conditioned_unet(position_embedding="relative+absolute", **BOTH), make_slices()
    assert sum(parameter.numel() for parameter in model.parameters()) < 50_000
    assert (predict(model, slices, 3) - predict(model, slices, 700)).abs().max() > 1e-3
    model(slices.pop("sample"), 9, **slices).sample.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


def test_x_and_y_take_their_own_roles():
    model, turned, slices = make_slice_conditioned_unet(), make_slice_conditioned_unet(), make_slices(grid=(8, 2))
    for parameter in turned.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.transpose(2, 3).contiguous()
    sideways = {name: value.transpose(2, 3) if value.ndim == 5 else value for name, value in slices.items()}
    result = predict(turned, sideways).transpose(2, 3)
    torch.testing.assert_close(result, predict(model, slices), atol=1e-5, rtol=1e-5)
    assert (predict(model, sideways).transpose(2, 3) - result).abs().max() > 1e-3


def test_gradient_checkpointing_gives_the_same_gradients():
    model, slices = make_slice_conditioned_unet(**BOTH).train(), make_slices()
    sample, gradients = slices.pop("sample"), []
    for enable in (False, True):
        model.zero_grad()
        model.enable_gradient_checkpointing() if enable else model.disable_gradient_checkpointing()
        model(sample, 7, **slices).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"targets_only": False}, {"num_targets": True}])
def test_compiles_without_graph_breaks(options):
    model = make_slice_conditioned_unet(position_embedding="relative+absolute", masked_norm=True, **BOTH)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for slots in (5, 6):
        slices, timesteps = make_slices(slots=slots), torch.tensor([9, 700])
        valid = torch.ones(2, slots)
        counted = {"num_targets": 2 * slots - 5} if "num_targets" in options else options
        expected = predict(model, slices, timesteps, valid=valid, **counted)
        torch.testing.assert_close(predict(compiled, slices, timesteps, valid=valid, **counted), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype, caplog):
    model, slices = make_slice_conditioned_unet(position_embedding="relative+absolute", masked_norm=True), make_slices()
    valid = torch.tensor([[1, 1, 1, 1, 1, 0]] * 2)
    reference = predict(model, slices, valid=valid)
    caplog.set_level(logging.ERROR, "diffusers")
    for name in ("sample", "known_slices"):
        slices[name] = slices[name].to(dtype)
    result = predict(model.to(dtype), slices, valid=valid)
    assert result.dtype == dtype
    assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_weights_are_loaded_strictly(tmp_path):
    model, slices = make_slice_conditioned_unet(position_embedding="relative+absolute"), make_slices()
    model.save_pretrained(tmp_path)
    loaded = SliceConditionedUNetModel.from_pretrained(tmp_path)
    assert not [name for name, tensor in loaded.state_dict().items() if tensor.data_ptr() % 64]
    assert torch.equal(predict(loaded, slices), predict(model, slices))
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["mid_block.attentions.0.slice_attention.relative_k.out.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing keys, the first is mid_block\.attentions\.0\.slice_attention"):
        SliceConditionedUNetModel.from_pretrained(tmp_path)


def test_a_fresh_network_predicts_zero():
    assert not predict(SliceConditionedUNetModel(**TINY), make_slices(), targets_only=False).any()


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, 4, 6), r"shape \(1, 1, 4, 6\); it takes \(batch, 1, x, y, slots\)"),
        ((1, 3, 4, 6, 5), r"it takes \(batch, 1, x, y, slots\)"),
        ((1, 1, 4, 6, 0), r"it takes \(batch, 1, x, y, slots\)"),
        ((1, 1, 5, 6, 5), "divisible by 2: use 4 or 6 along x"),
        ((1, 1, 4, 1, 5), "divisible by 2: use 2 along y"),
    ],
)
def test_samples_that_do_not_fit_raise(shape, message):
    with pytest.raises(ValueError, match=message):
        make_slice_conditioned_unet()(torch.zeros(shape), 9, positions=torch.arange(5.0)[None])


def test_slots_are_checked():
    slices = make_slices()
    with pytest.raises(ValueError, match="missing known, which says where they are"):
        predict(make_slice_conditioned_unet(), {**slices, "known": None})
    with pytest.raises(ValueError, match="got 3 timesteps for a batch of 2; give one, or one a sample"):
        predict(make_slice_conditioned_unet(), slices, timestep=torch.tensor([1, 2, 3]))
    for positions in (torch.zeros_like(slices["positions"]), slices["positions"] + torch.inf):
        with pytest.raises(
            ValueError, match="got one position for two slots of a sample, or one that is not finite; name"
        ):
            predict(make_slice_conditioned_unet(), {**slices, "positions": positions})
    unconditional = {"known": None, "known_slices": None, "valid": None}
    with pytest.raises(ValueError, match="num_targets is 3, but 12 slots are predicted; leave it out"):
        predict(make_slice_conditioned_unet(), {**slices, **unconditional}, num_targets=3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_levels": (True,)}, "1 values for 2 levels"),
        ({"norm_num_groups": 3}, "divides every width"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0; give at least one level and one group"),
        ({"block_out_channels": ()}, r"block_out_channels are \(\) and norm_num_groups is 2; give at least one level"),
        ({"num_attention_heads": 3}, r"widths \[8\] cannot be split into 3 heads"),
        ({"num_attention_heads": 0}, "into 0 heads"),
        ({"attention_levels": (True, False), "num_attention_heads": 8}, r"widths \[4, 8\] cannot be split"),
        ({"layers_per_block": 0}, "layers_per_block is 0; give at least 1"),
        ({"patch_size": 0}, "patch_size is 0; give at least 1"),
        ({"position_embedding": "absolute"}, r"'absolute'; allowed are relative, relative\+absolute"),
        ({"position_scale": 0.0}, r"position_scale is 0\.0; give the highest position"),
    ],
)
def test_bad_configurations_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        SliceConditionedUNetModel(**{**TINY, **changes})
