import pytest
import torch
from informed_slice_pipelines import make_informed_unet, make_slice_autoencoder, make_slice_generator

from voxdiff.pipelines.informed_slice_checks import check_conditions, check_latents, check_parts, check_sampling
from voxdiff.schedulers import make_scheduler

NOTHING = {
    "informed_slice": None,
    "informed_slice_latents": None,
    "unit": None,
    "background": None,
    "can_generate": False,
    "start_position": None,
    "propagation": "paper",
    "known_slice_noise": "clean",
    "overlap": None,
}


def test_parts_that_fit():
    vae, unet, slice_unet = make_slice_autoencoder(), make_informed_unet(), make_slice_generator()
    check_parts(vae, unet, slice_unet, "official")
    check_parts(vae, make_informed_unet(in_channels=8), None, "inclusive")


@pytest.mark.parametrize(("channels", "outputs"), [(10, 4), (12, 8), (4, 4)])
def test_networks_of_other_channels_raise(channels, outputs):
    with pytest.raises(ValueError, match=rf"so the network takes 12 channels .* takes {channels} and gives {outputs}"):
        check_parts(make_slice_autoencoder(), make_informed_unet(channels, out_channels=outputs), None, "inclusive")


def test_generators_of_other_channels_raise():
    slice_unet = make_slice_generator(out_channels=8)
    with pytest.raises(ValueError, match="slice_unet takes 4 channels and gives 8, but the autoencoder has 4"):
        check_parts(make_slice_autoencoder(), make_informed_unet(), slice_unet, "inclusive")


def test_what_makes_the_conditions_complete():
    check_conditions(True, **{**NOTHING, "informed_slice": "other.nii.gz", "unit": "HU"})
    check_conditions(True, **{**NOTHING, "informed_slice_latents": torch.zeros(1)})
    check_conditions(True, **{**NOTHING, "can_generate": True})
    check_conditions(False, **NOTHING)
    with pytest.raises(ValueError, match="No informed slice was given"):
        check_conditions(True, **NOTHING)
    with pytest.raises(ValueError, match="start_position, overlap was given, but this model has no informed slice"):
        check_conditions(False, **{**NOTHING, "start_position": 0, "overlap": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"can_generate": True, "unit": "HU"},
            "unit and background describe a given informed_slice, and none was given",
        ),
        ({"informed_slice": 1, "informed_slice_latents": 2}, "informed_slice and informed_slice_latents were given"),
    ],
)
def test_conditions_that_contradict_each_other_raise(given, message):
    with pytest.raises(ValueError, match=message):
        check_conditions(True, **{**NOTHING, **given})


def test_latents_of_another_shape_raise():
    check_latents("given", torch.zeros(1, 2), [(3, 2), (1, 2)], "encode")
    for given, received in ((torch.zeros(2), r"have the shape \(2,\)"), ([1], r"are \[1\]")):
        with pytest.raises(ValueError, match=received + r"; this call needs a tensor of \(3, 2\) or \(1, 2\): take"):
            check_latents("given", given, [(3, 2), (1, 2)], "encode")


def test_samplers():
    check_sampling(make_scheduler("gem-ddim"), 500, 1.0, "official")
    check_sampling(make_scheduler("gem-dpm++"), 1000, 0.0, "clean")
    with pytest.raises(ValueError, match=r"eta is 1\.0 with DPMSolverMultistepScheduler"):
        check_sampling(make_scheduler("gem-dpm++"), 10, 1.0, "clean")
    with pytest.raises(ValueError, match=r"eta is -0\.5"):
        check_sampling(make_scheduler("gem-ddim"), 10, -0.5, "clean")
    with pytest.raises(ValueError, match="eta is 'official'"):
        check_sampling(make_scheduler("gem-ddim"), 10, "official", "clean")
    with pytest.raises(ValueError, match="leads beyond the last timestep; take at most 500 steps"):
        check_sampling(make_scheduler("gem-ddim"), 1000, 0.0, "clean")
