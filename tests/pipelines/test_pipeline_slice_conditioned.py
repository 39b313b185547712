import json

import diffusers.schedulers.scheduling_ddpm as ddpm
import nibabel as nib
import numpy as np
import pytest
import torch
from goldens import load_golden
from slice_conditioned_unets import make_slice_conditioned_unet
from slice_pipelines import make_slice_pipeline, make_slice_processor, make_slice_unet

from voxdiff import Pipeline, SliceConditionedPipeline, VolumeProcessor
from voxdiff.hub.convert import convert_state_dict
from voxdiff.pipelines.slice_stages import SCHEMES
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, swap_scheduler
from voxdiff.schedulers.constraint import output_from_x0

SOLVERS = [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"]


@pytest.fixture(scope="module")
def shared():
    """For tests that change nothing in it."""
    return make_slice_pipeline()


@pytest.fixture
def pipe():
    return make_slice_pipeline()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_volume(shape=(8, 8, 12), seed=1):
    return torch.rand(shape, generator=seeded(seed))


def sample(pipe, **arguments):
    return pipe(**{"num_inference_steps": 2, "output_type": "pt", "generator": seeded(), **arguments}).volumes


def difference(first, second):
    return (first - second).abs().max().item()


# --- the published sampler -------------------------------------------------------------------------------------------


def test_the_official_ancestral_stage(monkeypatch):
    """The 12-step stage of FDM with three observed slices, through the whole call; 4e-6 was measured."""
    meta, state, inputs, outputs = load_golden("cdpm_stage")
    config = meta["config"]
    unet = convert_state_dict("fdm", state, norm_num_groups=32, num_attention_heads=config["model"]["num_heads"])
    processor = VolumeProcessor(intensity="window", low=-1, high=1, unit="a.u.")
    pipe = make_slice_pipeline(unet, "fdm", processor, stage_size=4, context_size=3)

    def slices_last(tensor):
        return tensor[0].permute(1, 2, 3, 0)[None]

    draws = [slices_last(inputs[f"noise{step}"])[..., 3:] for step in range(1, config["steps"] + 1)]
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *args, **kwargs: draws.pop(0))
    clean = slices_last(inputs["x0"])
    result = sample(
        pipe,
        known_slices={number: clean[0, 0, ..., number] for number in range(3)},
        size=(16, 16, 7),
        scheme="autoregressive",
        num_inference_steps=config["steps"],
        latents=slices_last(inputs["noise0"]),
        output_type="latent",
    )
    assert pipe.scheduler.timesteps.tolist() == meta["facts"]["timestep_map"][::-1]
    expected = slices_last(outputs["sample"])
    torch.testing.assert_close(result[..., 3:], expected[..., 3:], atol=meta["atol"], rtol=0)
    torch.testing.assert_close(result[..., :3], clean[..., :3], atol=1e-6, rtol=0)


# --- seeds and samplers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_sample_depends_on_its_own_generator_only(pipe, solver):
    pipe.scheduler = swap_scheduler(pipe.scheduler, solver)
    arguments = {"size": (4, 4, 9), "output_type": "latent"}
    together = sample(pipe, batch_size=2, generator=[seeded(4), seeded(5)], **arguments)
    assert torch.isfinite(together).all()
    for place, seed in enumerate((4, 5)):
        alone = sample(pipe, generator=seeded(seed), **arguments)
        assert difference(together[place : place + 1], alone) <= 1e-5
    assert difference(*together) > 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_sample_depends_on_its_own_generator_in_every_scheme(scheme):
    pipe = make_slice_pipeline(scheduler="fdm", scheme=scheme)
    arguments = {"size": (4, 4, 9), "output_type": "latent"}
    together = sample(pipe, batch_size=2, generator=[seeded(4), seeded(5)], **arguments)
    alone = sample(pipe, generator=seeded(5), **arguments)
    assert difference(together[1:], alone) <= 1e-5


def test_one_generator_draws_the_whole_batch(shared):
    latents = torch.randn((2, 1, 8, 8, 12), generator=seeded(3))
    assert (
        difference(sample(shared, batch_size=2, generator=seeded(3)), sample(shared, batch_size=2, latents=latents))
        == 0
    )


def test_few_sets_of_slices_at_a_time_give_the_same(shared):
    calls = []
    hook = shared.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    whole, most = sample(shared, batch_size=3), max(calls)
    calls.clear()
    parts = sample(shared, batch_size=3, max_batch=2)
    hook.remove()
    assert difference(whole, parts) <= 1e-5
    assert most > 2 == max(calls)


def test_flow_matching_runs():
    assert torch.isfinite(sample(make_slice_pipeline(scheduler="flow-matching"))).all()


# --- schemes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize(
    "known", [None, {"factor": 2, "extend": (0, 1)}, {"corrupted": [1, 2], "factor": 2, "extend": (0, 1)}]
)
def test_a_network_that_knows_the_volume_recovers_it(monkeypatch, scheme, axis, known):
    """Every stage gets its slices at their positions, and every slice comes back to its own place."""
    pipe = make_slice_pipeline(processor=make_slice_processor(size=(8, 8, 8)))
    truth = make_volume((8, 8, 8)).movedim(axis, -1)
    truth[..., 0] = 0  # the anchor

    def predict(noisy, context, positions, timestep):
        slices = (2 * truth - 1)[..., positions.long()].permute(2, 0, 1, 3)[:, None]
        torch.testing.assert_close(context, slices[..., : context.shape[-1]], atol=5e-3, rtol=0)
        return output_from_x0(pipe.scheduler, slices[..., context.shape[-1] :], timestep, noisy)

    monkeypatch.setattr(pipe, "predict_targets", predict)
    arguments = {"slice_axis": axis, "scheme": scheme, "num_inference_steps": 4}
    if known:
        arguments |= {"volume": truth[..., ::2].movedim(-1, axis), "intensity_range": (0, 1), **known}
    result = sample(pipe, **arguments)[0, 0].movedim(axis, -1)
    torch.testing.assert_close(result, truth, atol=5e-3, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_slice_stays_empty(shared, scheme, axis):
    volume = sample(shared, scheme=scheme, slice_axis=axis, size=(8, 8, 8), output_type="latent")
    assert volume.shape == (1, 1, 8, 8, 8)
    spread = volume[0, 0].movedim(axis, 0).flatten(1).std(dim=1)
    assert (spread[scheme == "anchored" :] > 1e-3).all()
    assert (spread[0] == 0) == (scheme == "anchored")


def test_another_axis_than_the_trained_one_is_warned_of(shared, caplog):
    sample(shared, slice_axis=2)
    assert not caplog.records
    sample(shared, slice_axis=0)
    assert "slice_axis is 0, but the network has only seen slices along axis 2" in caplog.text


def test_the_anchor_moves_the_first_stage():
    pipe = make_slice_pipeline(make_slice_conditioned_unet())
    free, anchored = (sample(pipe, scheme=scheme, output_type="latent") for scheme in ("autoregressive", "anchored"))
    assert (anchored[..., 0] == -1).all()
    assert difference(free[..., 1], anchored[..., 1]) > 1e-3


def test_sides_that_the_network_cannot_halve_are_padded(shared):
    assert sample(shared, size=(7, 9, 5)).shape == (1, 1, 7, 9, 5)
    assert sample(shared, volume=make_volume((7, 9, 3)), factor=2, output_type="nifti")[0].shape == (7, 9, 5)


# --- known slices ----------------------------------------------------------------------------------------------------


def test_known_slices_stay_and_move_all_others():
    pipe = make_slice_pipeline(make_slice_conditioned_unet())
    one, two = make_volume()[..., 0], make_volume()[..., 1]
    arguments = {"intensity_range": (0, 1)}
    first = sample(pipe, known_slices={5: one}, **arguments)
    second = sample(pipe, known_slices={5: two}, **arguments)
    elsewhere = sample(pipe, known_slices={6: one}, **arguments)
    assert torch.equal(first[0, 0, ..., 5], one) and torch.equal(elsewhere[0, 0, ..., 6], one)
    for number in (0, 3, 9, 11):
        assert difference(first[..., number], second[..., number]) > 1e-4
    assert difference(first[..., 7:], elsewhere[..., 7:]) > 1e-4


def test_thick_slices_become_thin_ones():
    pipe = make_slice_pipeline(processor=make_slice_processor(size=None, spacing=None, intensity="percentile", low=5))
    values = (make_volume((8, 8, 5)) * 1000).short().numpy()
    affine = np.array([[-1.9, 0.3, 0, 4], [0.3, 1.9, 0, 5], [0, 0, 6, -9], [0, 0, 0, 1]])
    (image,) = sample(pipe, volume=nib.Nifti1Image(values, affine), factor=4, output_type="nifti")
    assert image.shape == (8, 8, 17)
    np.testing.assert_allclose(image.affine, affine @ np.diag([1, 1, 0.25, 1]))
    result = image.get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(result[..., ::4], values)
    assert np.abs(result[..., 1::4]).max() <= values.max() and result[..., 1].std() > 1


def test_corrupted_slices_are_replaced_and_their_voxels_unread(shared):
    volume, broken = make_volume(), make_volume()
    broken[..., 4] = 1e4
    result = sample(shared, volume=broken, corrupted=[4])
    assert torch.equal(result, sample(shared, volume=volume, corrupted=[4]))
    kept = [number for number in range(12) if number != 4]
    assert torch.equal(result[0, 0][..., kept], volume[..., kept])


def test_a_cropped_scan_is_completed_on_both_sides(shared):
    scan = nib.Nifti1Image(make_volume((8, 8, 6)).numpy(), np.diag([2, 2, 3, 1]))
    (image,) = sample(shared, volume=scan, extend=(2, 4), output_type="nifti")
    assert image.shape == (8, 8, 12) and image.affine[2, 3] == -6
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[..., 2:8], scan.get_fdata(dtype=np.float32))


def test_samples_of_one_condition_differ_between_its_slices_only(shared):
    known = [0, 4, 8, 11]
    samples = sample(shared, volume=make_volume(), known_indices=known, batch_size=3)
    spread = samples.std(dim=0)[0]
    assert (spread[..., known] == 0).all()
    unknown = [number for number in range(12) if number not in known]
    assert (spread[..., unknown].flatten(0, 1).amax(0) > 1e-3).all()


def test_a_finer_grid_than_the_models_shows_in_the_positions():
    pipe, seen = make_slice_pipeline(), []
    pipe.unet.register_forward_pre_hook(lambda module, inputs, arguments: seen.append(arguments), with_kwargs=True)
    scan = nib.Nifti1Image(make_volume((8, 8, 3)).numpy(), np.diag([2, 2, 3, 1]))
    sample(pipe, volume=scan, factor=2, batch_size=3, num_inference_steps=1)
    assert seen[0]["positions"].tolist() == [[4.5, 5.5, 6.5, 5.0, 6.0]] * 3
    assert seen[0]["num_targets"] == 6


# --- the call --------------------------------------------------------------------------------------------------------


def test_the_record_and_the_callback(shared):
    steps = []

    def on_step_end(pipe, index, timestep, tensors):
        steps.append((index, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    volume = make_volume((8, 8, 3))
    output = shared(
        volume=volume,
        factor=2,
        num_inference_steps=2,
        generator=seeded(7),
        callback_on_step_end=on_step_end,
    )
    assert steps == [(0, (1, 1, 8, 8, 2)), (1, (1, 1, 8, 8, 2))]
    (record,) = output.provenance
    assert record["seed"] == 7 and record["conditions"] == {
        "source": "Tensor",
        "known_slices": [0, 2, 4],
        "slice_axis": 2,
        "first_position": 3.5,
        "intensity_range": pytest.approx([volume.min().item(), volume.max().item()]),
        "scheme": "hierarchical",
        "stage_size": 3,
        "context_size": 4,
        "first_stage_size": None,
        "stages": 1,
        "waves": 1,
    }
    values = output.volumes[0].get_fdata()
    assert np.ptp(values[..., 1]) == 0
    assert shared(size=(8, 8, 2), num_inference_steps=1, return_dict=False)[0][0].shape == (8, 8, 2)


def test_sizes_may_be_of_numpy_and_the_record_is_plain(shared):
    numbers = {name: np.int64(2) for name in ("stage_size", "context_size", "first_stage_size", "slice_axis")}
    output = shared(num_inference_steps=1, generator=seeded(), **numbers)
    assert json.loads(json.dumps(output.provenance[0]["conditions"]))["stage_size"] == 2
    with pytest.raises(ValueError, match="batch_size is True; give a whole number of at least 1"):
        shared(batch_size=True, num_inference_steps=1)


def test_callbacks_can_tell_how_many_steps_the_stages_take_together(shared):
    seen = []

    def on_step_end(pipe, index, timestep, tensors):
        seen.append((index, pipe.num_timesteps, pipe.num_loops))
        return tensors

    shared(num_inference_steps=2, generator=seeded(), callback_on_step_end=on_step_end)
    loops = seen[0][2]
    assert loops > 1 and seen == [(0, 2, loops), (1, 2, loops)] * loops


def test_a_saved_pipeline_makes_the_same_volume(shared, tmp_path):
    shared.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, SliceConditionedPipeline)
    assert loaded.config["max_slices"] == 7 and loaded.volume_processor == shared.volume_processor
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded), sample(shared))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_keeps_known_slices(dtype):
    volume = make_volume((8, 8, 3))
    result = sample(make_slice_pipeline(make_slice_unet().to(dtype)), volume=volume, factor=2)
    assert result.dtype == torch.float32 and torch.equal(result[0, 0, ..., ::2], volume)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"known_slices": {12: make_volume()[..., 0]}},
            "known_slices has the slice 12; give whole numbers from 0 to 11",
        ),
        ({"volume": make_volume(), "corrupted": [3, 3]}, "corrupted has the slice 3 twice"),
        ({"known_slices": {1: make_volume()[:4, :, 0]}}, r"has the shape \(4, 8\), but across axis 2 this grid"),
        ({"context_size": 5}, "a context of 5 has 8 slices, but this network takes at most 7 at a time"),
        ({"volume": make_volume()}, "the result has 12 slices and all are known; give a factor above 1"),
        ({"volume": make_volume()[..., :1], "factor": 4}, "the result has 1 slices and all are known; give a factor"),
        ({"generator": [None]}, r"generator is \[None\]; give a torch.Generator, or a list of one a sample"),
        ({"generator": 7}, "generator is 7; give a torch.Generator"),
        ({"scheme": "inwards"}, "scheme is 'inwards'; use one of"),
        ({"first_position": 2}, r"first_position was given, but this network knows the distances .*; leave it out"),
        ({"max_batch": 0}, "max_batch is 0; give a whole number of at least 1"),
        ({"first_stage_size": 8}, "first_stage_size is 8; give a whole number from 1 to 7"),
        ({"latents": torch.zeros(1, 1, 8, 8, 8)}, r"latents have the shape \(1, 1, 8, 8, 8\); this call needs"),
        ({"latents": np.zeros((1, 1, 8, 8, 12))}, r"latents are a ndarray; give a tensor of shape \(1, 1, 8, 8, 12\)"),
        ({"latents": torch.full((1, 1, 8, 8, 12), torch.nan)}, "and numbers that are finite"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(shared, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(shared, **arguments)


def test_a_pipeline_of_impossible_parts_is_refused():
    with pytest.raises(ValueError, match="takes 3 and gives 3 channels a slice; this pipeline makes volumes of one"):
        make_slice_pipeline(make_slice_unet(in_channels=3, out_channels=3))
    with pytest.raises(ValueError, match="scheme is 'inwards'"):
        make_slice_pipeline(scheme="inwards")
    for axis in (3, True):
        with pytest.raises(ValueError, match=f"slice_axis is {axis}; use 0, 1 or 2"):
            make_slice_pipeline(slice_axis=axis)
    with pytest.raises(ValueError, match="A stage of 5 slices with a context of 4 has 9 slices"):
        make_slice_pipeline(stage_size=5)
