import json

import nibabel as nib
import numpy as np
import pytest
import torch
from informed_slice_pipelines import (
    make_informed_pipeline,
    make_informed_unet,
    make_slice_autoencoder,
    make_slice_generator,
)

from voxdiff import InformedSlicePipeline, Pipeline, VolumeProcessor
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, swap_scheduler

SHAPE = (8, 8, 10)
SOLVERS = [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"]


@pytest.fixture(scope="module")
def shared():
    """For tests that change nothing in it."""
    return make_informed_pipeline(slice_unet=make_slice_generator())


@pytest.fixture
def pipe():
    return make_informed_pipeline()


@pytest.fixture
def baseline():
    return make_informed_pipeline(unet=make_informed_unet(in_channels=8))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_mask(shape=SHAPE, seed=0):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(1, -1) if count > 2 else slice(None) for count in shape)] = 1
    mask[tuple(slice(seed, seed + 3) for _ in shape)] = 2
    return mask


def make_slice(seed=0, shape=SHAPE[:2]):
    return torch.rand(shape, generator=seeded(seed)) * 2 - 1


def sample(pipe, mask=None, **arguments):
    mask = make_mask() if mask is None else mask
    if pipe.takes_informed_slice and "informed_slice" not in arguments:
        arguments["informed_slice"] = make_slice()
    arguments = {"num_inference_steps": 2, "output_type": "pt", "generator": seeded(), **arguments}
    return pipe(mask, **arguments).volumes


def difference(first, second):
    return (first - second).abs().max().item()


# --- seeds and samplers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "arguments"),
    [*((name, {}) for name in SOLVERS), ("ddim", {"eta": 1.0}), ("ddim", {"known_slice_noise": "matched"})],
)
def test_each_volume_depends_on_its_own_generator_mask_and_slice_only(pipe, solver, arguments):
    pipe.scheduler = swap_scheduler(pipe.scheduler, solver)
    masks, slices = [make_mask(seed=1), make_mask(seed=4)], [make_slice(1), make_slice(2)]
    both = {"output_type": "latent", **arguments}
    together = sample(pipe, masks, informed_slice=slices, generator=[seeded(4), seeded(5)], **both)
    assert torch.isfinite(together).all()
    for place, seed in enumerate((4, 5)):
        alone = sample(pipe, masks[place], informed_slice=slices[place], generator=seeded(seed), **both)
        assert difference(together[place : place + 1], alone) <= 1e-5 * alone.abs().max().item()
    assert difference(*together) > 1e-3


def test_generated_slices_depend_on_their_own_generator_too(shared):
    def run(masks, generator):
        return sample(shared, masks, informed_slice=None, generator=generator, output_type="latent")

    together = run([make_mask(), make_mask()], [seeded(4), seeded(5)])
    for place, seed in enumerate((4, 5)):
        assert difference(together[place : place + 1], run(make_mask(), seeded(seed))) <= 1e-4


def test_one_generator_draws_the_whole_batch(pipe):
    masks = [make_mask(), make_mask()]
    latents = torch.randn((2, 4, 4, 4, 10), generator=seeded(1))
    assert difference(sample(pipe, masks, generator=seeded(1)), sample(pipe, masks, latents=latents)) == 0


@pytest.mark.parametrize("propagation", ["paper", "official"])
@pytest.mark.parametrize("start", [0, 4, 9])
def test_no_slice_stays_empty_and_windows_meet_where_they_were_told(pipe, propagation, start):
    latents = sample(pipe, start_position=start, propagation=propagation, output_type="latent")
    assert latents.shape == (1, 4, 4, 4, 10)
    assert (latents.abs().amax((0, 1, 2, 3)) > 1e-3).all()
    plan = pipe.plan(10, start, propagation=propagation)
    assert sorted(number for window in plan for number in window.generated) == list(range(10))


def test_flow_matching_runs():
    pipe = make_informed_pipeline(scheduler="flow-matching")
    for noise in ("clean", "matched"):
        assert torch.isfinite(sample(pipe, known_slice_noise=noise)).all()
    with pytest.raises(ValueError, match="'official', but FlowMatchEulerDiscreteScheduler has no training timesteps"):
        sample(pipe, known_slice_noise="official")


# --- conditions ------------------------------------------------------------------------------------------------------


def test_every_condition_moves_the_output(shared):
    def latents(**arguments):
        return sample(shared, **{"output_type": "latent", **arguments})

    reference = latents()
    changed = {
        "mask": {"mask": make_mask(seed=5)},
        "informed slice": {"informed_slice": make_slice(9)},
        "generated slice": {"informed_slice": None},
        "start": {"start_position": 0},
        "propagation": {"propagation": "official"},
        "matched": {"known_slice_noise": "matched"},
        "official": {"known_slice_noise": "official"},
        "window": {"window": 6},
        "overlap": {"overlap": 2},
    }
    for name, arguments in changed.items():
        assert difference(reference, latents(**arguments)) > 1e-4, name
    first, second = (
        latents(informed_slice=None, start_position=p, latents=torch.zeros(1, 4, 4, 4, 10)) for p in (0.0, 1.0)
    )
    assert difference(first, second) > 1e-4


def test_eta_moves_the_output_of_ddim_and_of_no_other(pipe):
    with pytest.raises(
        ValueError, match=r"eta is 1\.0 with DPMSolverMultistepScheduler; give 0 to 1 with DDIMScheduler"
    ):
        sample(pipe, eta=1.0)
    pipe.scheduler = swap_scheduler(pipe.scheduler, "ddim")
    assert difference(sample(pipe), sample(pipe, eta=1.0)) > 1e-4
    with pytest.raises(ValueError, match="num_inference_steps is 1000, but the scheduler's steps_offset is 1"):
        sample(pipe, num_inference_steps=1000)


def test_the_network_is_told_which_slices_are_known(monkeypatch):
    unet = make_informed_unet(known_slice_indicator=True)
    pipe, told = make_informed_pipeline(unet=unet), []
    forward = unet.forward

    def listen(network_input, timestep, *, known):
        told.append(known)
        return forward(network_input, timestep, known=known)

    monkeypatch.setattr(unet, "forward", listen)
    sample(pipe, num_inference_steps=1, start_position=4)
    assert [known.tolist() for known in told] == [
        [[False, False, False, False]],
        [[True, True, False, False], [False, False, False, True]],
        [[False, True, True, True]],
    ]


def test_a_window_sees_the_slices_that_are_there(pipe, monkeypatch):
    """Informed slice and known slices of the second wave are what the first one made, without noise."""
    seen, forward = [], pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *args, **kwargs: seen.append(x) or forward(x, *args, **kwargs))
    result = sample(pipe, start_position=4, num_inference_steps=1, output_type="latent")
    upward, downward = seen[1]
    torch.testing.assert_close(upward[:4, ..., :2], result[0, ..., 6:8])
    torch.testing.assert_close(upward[8:, ..., 3], result[0, ..., 7])
    torch.testing.assert_close(downward[:4, ..., 3], result[0, ..., 4])
    torch.testing.assert_close(downward[8:, ..., 0], result[0, ..., 4])


def test_mask_latents_are_used_again(pipe, monkeypatch):
    masks = [make_mask(), make_mask(seed=4)]
    encoded = pipe.encode_masks(masks)
    assert encoded.shape == (2, 4, 4, 4, 10)
    reference = sample(pipe, masks)
    monkeypatch.setattr("voxdiff.pipelines.informed_slice_latents.encode_masks", None)
    assert difference(reference, sample(pipe, masks, mask_latents=encoded)) == 0
    with pytest.raises(ValueError, match=r"mask_latents have the shape \(1, 4, 4, 4, 10\); this call needs .* \(2, 4"):
        sample(pipe, masks, mask_latents=encoded[:1])


def test_one_generated_slice_serves_all_masks(shared):
    """What a call generates itself is what generate_slice makes of the same noise."""
    made = shared.generate_slice(5 / 9, SHAPE[:2], num_inference_steps=2, generator=seeded(3))
    masks, noise = [make_mask(), make_mask(seed=4)], torch.randn(2, 4, 4, 4, 10, generator=seeded(1))
    together = sample(shared, masks, informed_slice=None, informed_slice_latents=made, latents=noise)
    alone = sample(shared, masks[1], informed_slice=None, latents=noise[1:], generator=seeded(3))
    assert difference(together[1:], alone) <= 1e-5
    with pytest.raises(ValueError, match=r"informed_slice_latents have the shape \(1, 4, 4, 8\); .* or \(1, 4, 4, 4\)"):
        sample(shared, informed_slice=None, informed_slice_latents=torch.zeros(1, 4, 4, 8))


def test_an_offloaded_autoencoder_is_handed_its_input_on_the_device_it_runs_on(pipe, monkeypatch):
    reference = sample(pipe)
    monkeypatch.setattr(type(pipe), "_execution_device", torch.device("cpu"))
    monkeypatch.setattr(type(pipe.vae), "device", torch.device("meta"))
    assert difference(reference, sample(pipe)) == 0


def test_fewer_slices_than_the_window_are_generated_and_cropped(pipe):
    mask = make_mask((8, 8, 3))
    deeper = np.concatenate([mask, mask[..., -1:]], axis=-1)
    latents = torch.randn((1, 4, 4, 4, 4), generator=seeded(1))
    shallow = sample(pipe, mask, latents=latents, start_position=1)
    assert shallow.shape == (1, 1, 8, 8, 3)
    assert difference(shallow, sample(pipe, deeper, latents=latents, start_position=1)[..., :3]) <= 1e-6


def test_planes_are_padded_with_background_and_cropped(pipe):
    mask, plane = make_mask((6, 9, 5)), make_slice(0, (6, 9))
    padded_mask = np.pad(mask, ((1, 1), (1, 2), (0, 0)))
    padded_plane = torch.nn.functional.pad(plane, (1, 2, 1, 1), value=-1)
    result = sample(pipe, mask, informed_slice=plane)
    assert result.shape == (1, 1, 6, 9, 5)
    assert difference(result, sample(pipe, padded_mask, informed_slice=padded_plane)[..., 1:7, 1:10, :]) == 0


# --- Make-A-Volume ---------------------------------------------------------------------------------------------------


def test_the_baseline_generates_independent_windows(baseline):
    latents = torch.randn((1, 4, 4, 4, 10), generator=seeded(1))
    whole = sample(baseline, latents=latents, output_type="latent")
    part = sample(baseline, make_mask()[..., 4:8], latents=latents[..., 4:8], output_type="latent")
    torch.testing.assert_close(whole[..., 4:8], part)
    assert (whole.abs().amax((0, 1, 2, 3)) > 1e-3).all()
    assert difference(whole, sample(baseline, make_mask(seed=4), latents=latents, output_type="latent")) > 1e-4


@pytest.mark.parametrize(
    "given",
    [
        {"informed_slice": make_slice()},
        {"informed_slice_latents": torch.zeros(1, 4, 4, 4)},
        {"unit": "HU"},
        {"background": 0.0},
        {"start_position": 3},
        {"propagation": "official"},
        {"known_slice_noise": "matched"},
        {"overlap": 2},
    ],
)
def test_the_baseline_refuses_what_it_does_not_use(baseline, given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} was given, but this model has no informed slice"):
        sample(baseline, **given)


# --- files and geometry ----------------------------------------------------------------------------------------------


def test_the_volume_lies_on_its_masks_own_grid(pipe):
    mask = make_mask((8, 8, 10))
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    image = nib.Nifti1Image(mask, affine)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("LIP"))
    reference = sample(pipe, image, output_type="nifti")[0]
    result = sample(pipe, turned, output_type="nifti", informed_slice=np.tile(make_slice()[..., None], (1, 1, 10)))[0]
    assert result.shape == turned.shape and np.allclose(result.affine, turned.affine)
    back = result.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(turned.affine), [[0, 1], [1, 1], [2, 1]])
    )
    assert np.allclose(back.affine, affine) and np.array_equal(reference.affine, affine)
    np.testing.assert_allclose(back.get_fdata(), reference.get_fdata(), atol=1e-6)


def test_a_resampled_volume_comes_back_to_the_masks_grid():
    processor = VolumeProcessor(intensity="window", low=0, high=100, unit="ms", spacing=(2, 2, 2), size=(8, 8, 6))
    pipe = make_informed_pipeline(processor=processor)
    mask = nib.Nifti1Image(np.kron(make_mask((8, 8, 6)), np.ones((2, 2, 2), np.uint8)), np.eye(4))
    (image,) = sample(pipe, mask, output_type="nifti", informed_slice=np.full((16, 16), 50.0))
    assert image.shape == (16, 16, 12) and np.array_equal(image.affine, np.eye(4))
    assert image.get_fdata().min() >= 0 and 1 < image.get_fdata().max() <= 100


def test_save_and_load(shared, tmp_path):
    shared.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["voxdiff", "InformedSliceUNetModel"]
    assert index["mask_values"] == {"0": -1.0, "1": 0.0, "2": 1.0}
    loaded = Pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded, InformedSlicePipeline)
    arguments = {"informed_slice": None}
    assert difference(sample(shared, **arguments), sample(loaded, **arguments)) == 0


def test_a_pipeline_without_slice_generator_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.slice_unet is None
    with pytest.raises(ValueError, match="this pipeline has no slice_unet to generate one"):
        sample(loaded, informed_slice=None)


# --- the call --------------------------------------------------------------------------------------------------------


def test_provenance_says_what_was_informed(shared, tmp_path):
    path = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).uniform(-1, 1, (8, 8, 7)).astype(np.float32), np.eye(4)), path)
    masks = [make_mask(), make_mask()]
    call = {"num_inference_steps": 1, "generator": seeded(7), "start_position": 1.0}
    from_file, from_array = shared(masks, informed_slice=[path, (np.zeros((8, 8, 3)), 1)], **call).provenance
    assert (from_file["conditions"]["informed_slice"], from_file["conditions"]["informed_slice_index"]) == (
        str(path),
        6,
    )
    assert (from_array["conditions"]["informed_slice"], from_array["conditions"]["informed_slice_index"]) == (
        "ndarray",
        1,
    )
    assert from_file["conditions"] | {"informed_slice": None, "informed_slice_index": None} == {
        "informed_slice": None,
        "informed_slice_index": None,
        "mask": "ndarray",
        "start": 9,
        "eta": 0.0,
        "propagation": "paper",
        "known_slice_noise": "clean",
        "windows": [[6, 4], [3, 4], [0, 4]],
    }
    assert from_file["seed"] == 7
    generated = shared(make_mask(), num_inference_steps=1).provenance[0]
    assert generated["conditions"]["informed_slice"] == "generated" and generated["conditions"]["start"] == 5
    json.dumps([from_file, from_array, generated])


def test_the_callback_sees_and_changes_every_wave(pipe):
    calls = []

    def zero_the_last(pipe, index, timestep, tensors):
        calls.append((index, len(tensors["latents"])))
        return {"latents": tensors["latents"] * (index < pipe.num_timesteps - 1)}

    latents = sample(pipe, callback_on_step_end=zero_the_last, start_position=4, output_type="latent")
    assert calls == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 1), (1, 1)]
    assert not latents.any()


def test_rgb_autoencoders_and_half_precision_run():
    pipe = make_informed_pipeline(vae=make_slice_autoencoder(channels=3)).to(torch.bfloat16)
    assert torch.isfinite(sample(pipe)).all()


def test_return_dict_and_output_types(pipe):
    (images,) = pipe(make_mask(), informed_slice=make_slice(), num_inference_steps=1, return_dict=False)
    assert isinstance(images[0], nib.Nifti1Image)
    assert isinstance(sample(pipe, output_type="np"), np.ndarray)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mask": make_mask() * 2},
            "The mask holds the label 4, which this model does not know; its labels are 0, 1, 2",
        ),
        ({"mask": make_mask() - 0.5}, "label 1.5"),
        ({"mask": np.zeros(SHAPE)}, "The mask is empty, all of it has the label 0"),
        ({"mask": np.zeros((8, 8, 0))}, "is empty, its shape is"),
        ({"mask": []}, "mask is an empty list"),
        ({"mask": [make_mask(), make_mask((8, 8, 9))]}, "lie on the grids .*; call once a grid"),
        ({"informed_slice": make_slice(0, (8, 9))}, r"has the shape \(8, 9\), the slices of its mask \(8, 8\)"),
        (
            {"informed_slice": np.zeros((9, 8, 10))},
            r"is \(9, 8\) voxels on the model's grid, the mask's slices are \(8, 8\)",
        ),
        ({"informed_slice": None, "unit": "HU"}, "unit and background describe a given informed_slice"),
        ({"informed_slice": (np.zeros((8, 8, 3)), 3)}, "slice 3 of a volume with the slices 0 to 2"),
        ({"informed_slice": [make_slice()] * 2}, "2 informed slices were given for 1 masks"),
        ({"informed_slice": 3}, "informed_slice is a int; give a 2D slice"),
        ({"start_position": 10}, "start_position is 10; give a number from 0.0 to 1.0, or a slice, here .* 0 to 9"),
        ({"start_position": 1.5}, "start_position is 1.5"),
        ({"start_position": True}, "start_position is True"),
        ({"known_slice_noise": "none"}, "known_slice_noise is 'none'; use one of 'clean', 'matched', 'official'"),
        ({"propagation": "both"}, "propagation is 'both'"),
        ({"overlap": 4}, "overlap is 4; give 1 to 3"),
        ({"latents": torch.zeros(1, 4, 4, 4, 4)}, "latents have the shape"),
    ],
)
def test_wrong_inputs_explain_themselves(shared, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(shared, **arguments)


def test_parts_that_do_not_fit_raise():
    with pytest.raises(ValueError, match=r"has 4 latent channels, so the network takes 12 channels .* takes 10"):
        make_informed_pipeline(unet=make_informed_unet(in_channels=10))
    with pytest.raises(ValueError, match="slice_unet was given, but the network has no channels"):
        make_informed_pipeline(unet=make_informed_unet(in_channels=8), slice_unet=make_slice_generator())
    with pytest.raises(ValueError, match="position_rule is 'exclusive'"):
        make_informed_pipeline(position_rule="exclusive")
