"""The models in model_cards/ load strictly and generate what their cards say."""

import nibabel as nib
import numpy as np
import pytest
import torch

import voxdiff
from voxdiff.hub.registry import resolve_model, shipped_models

SCALAR = "ventricle_volume_ml"


@pytest.fixture(scope="module")
def pvldm():
    pipe = voxdiff.Pipeline.from_pretrained(resolve_model("pvldm-cohort-64"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def informed():
    pipe = voxdiff.Pipeline.from_pretrained(resolve_model("informed-slice-brain-64"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def sliced():
    pipe = voxdiff.Pipeline.from_pretrained(resolve_model("slice-brain-64"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, label, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(label, num_inference_steps=2, generator=generator, **arguments).volumes[0]


@pytest.mark.parametrize("name", shipped_models())
def test_every_shipped_model_loads_and_is_small(name):
    pipe = voxdiff.Pipeline.from_pretrained(resolve_model(name))
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert 2 * sum(weight.numel() for part in parts for weight in part.state_dict().values()) < 8e6


@pytest.mark.parametrize(("label", "spacing", "low"), [("mr", 3.25, 0), ("ct", 6, -1000)])
@pytest.mark.parametrize("size", [None, (64, 64, 48)])
def test_classes_have_their_grid_spacing_and_unit(pvldm, label, spacing, low, size):
    volume = generate(pvldm, label, size=size)
    assert volume.shape == (size or (64, 64, 64))
    assert volume.header.get_zooms() == (spacing,) * 3
    assert np.isclose(volume.get_fdata().min(), low, atol=0.2 if label == "mr" else 200)


def test_class_and_scalar_move_the_output(pvldm):
    brain = generate(pvldm, "mr", output_type="latent")
    assert not torch.equal(brain, generate(pvldm, "ct", output_type="latent"))
    small, large = (generate(pvldm, "mr", scalars={SCALAR: value}, output_type="latent") for value in (10.0, 34.0))
    assert not torch.equal(small, large)


def test_mask_and_slice_move_the_volume(informed):
    axes = np.meshgrid(*(np.linspace(-1, 1, 32),) * 3, indexing="ij")
    brain = np.where(sum((2 * axis) ** 2 for axis in axes) < 2, 4, 0).astype(np.uint8)
    tumour = brain.copy()
    tumour[14:20, 14:20, 14:20] = 2
    affine = np.diag([6.5, -6.5, 6.5, 1.0])
    slices = [value * (brain[:, :, 16] > 0).astype(np.float32) for value in (0.4, 0.8)]

    def generate(labels, informed_slice):
        mask, generator = nib.Nifti1Image(labels, affine), torch.Generator().manual_seed(0)
        [volume] = informed(mask, informed_slice=informed_slice, num_inference_steps=4, generator=generator).volumes
        assert volume.shape == (32, 32, 32) and np.allclose(volume.affine, affine)
        return volume.get_fdata()

    dark, bright, ill = generate(brain, slices[0]), generate(brain, slices[1]), generate(tumour, slices[0])
    assert bright[brain > 0].mean() > dark[brain > 0].mean() + 0.1
    assert ill[tumour == 2].mean() > dark[tumour == 2].mean() + 0.1
    assert abs(dark[brain == 0].mean()) < 0.05


def test_known_slices_stay_and_decide_what_lies_between(sliced):
    axes = np.meshgrid(*(np.linspace(-1, 1, 64),) * 3, indexing="ij")
    head = np.where(sum((1.4 * axis) ** 2 for axis in axes) < 1, 0.7, 0).astype(np.float32)
    head[24:40, 24:40, 28:37] = 0.2
    affine, known = np.diag([3.25, 3.25, 3.25, 1.0]), list(range(24, 41, 4))
    generator = torch.Generator().manual_seed(0)
    image = nib.Nifti1Image(head[..., 24:41], affine)
    arguments = {"known_indices": [index - 24 for index in known], "first_position": 24, "intensity_range": (0, 1)}
    [volume] = sliced(volume=image, num_inference_steps=4, generator=generator, **arguments).volumes
    assert volume.shape == (64, 64, 17) and np.allclose(volume.affine, affine)
    values, real = volume.get_fdata(), head[..., 24:41]
    assert np.array_equal(values[..., ::4], real[..., ::4])
    missing = np.arange(17) % 4 != 0
    error = np.abs(values - real)[..., missing].mean()
    assert error < 0.5 * np.abs(np.roll(real, 8, axis=0) - real)[..., missing].mean()
    assert abs(values[..., missing][:6, :6].mean()) < 0.05
