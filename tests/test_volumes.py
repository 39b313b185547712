import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch

import voxdiff
from voxdiff.volumes import VolumeProcessor

ORIENTATIONS = [
    "".join(code) for letters in itertools.permutations(["RL", "AP", "SI"]) for code in itertools.product(*letters)
]
HU = {"intensity": "window", "low": -1000.0, "high": 1000.0}
SHAPE, SPACING = (5, 6, 7), (1.0, 1.5, 2.5)


def world_values(affine, shape):
    """An intensity that tells where in the world a voxel is: any swapped or flipped axis changes it."""
    x, y, z = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return 4 * x + 11 * y - 17 * z - 40


def reorient(image, code):
    target = nib.orientations.axcodes2ornt(code)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))


def oriented_image(code, shape=SHAPE, spacing=SPACING):
    """A volume in this orientation, turned by nibabel's own idea of axis codes, not by ours."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-7, 11, 3.5)
    image = reorient(nib.Nifti1Image(world_values(affine, shape).astype(np.float32), affine), code)
    assert "".join(nib.aff2axcodes(image.affine)) == code
    np.testing.assert_allclose(image.get_fdata(), world_values(image.affine, image.shape), rtol=1e-5)
    return image


def rotated_affine(degrees, spacing=(1.0, 1.0, 1.0)):
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x * spacing
    affine[:3, 3] = (-3, 5, 2)
    return affine


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).uniform(-900, 900, shape).astype(np.float32)


def hu(tensor):
    return np.asarray(tensor)[0, 0] * 1000


# --- grids


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_input_orientation_reaches_the_model_and_returns(code):
    image = oriented_image(code)
    processor = VolumeProcessor(**HU)
    tensor, geometry = processor.preprocess(image)
    grid = np.array(geometry.model_affine)
    np.testing.assert_array_equal(grid[:3, :3], np.diag(np.diag(grid[:3, :3])))
    assert (np.diag(grid) > 0).all()
    assert tensor.shape[2:] == geometry.model_shape
    np.testing.assert_allclose(hu(tensor), world_values(grid, geometry.model_shape), atol=1e-3)
    assert geometry.orientation == code
    assert not geometry.resampled
    (back,) = processor.postprocess(tensor, geometries=[geometry])
    np.testing.assert_array_equal(back.affine, image.affine)
    np.testing.assert_allclose(back.get_fdata(), image.get_fdata(), atol=1e-3)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_model_orientation(code):
    image = oriented_image("PIR")
    processor = VolumeProcessor(orientation=code, size=(6, 5, 8), **HU)
    tensor, geometry = processor.preprocess(image)
    assert tensor.shape == (1, 1, 6, 5, 8)
    grid = np.array(geometry.model_affine)
    assert "".join(nib.aff2axcodes(grid)) == code
    inside = hu(tensor) > -1000
    np.testing.assert_allclose(hu(tensor)[inside], world_values(grid, (6, 5, 8))[inside], atol=1e-3)
    (back,) = processor.postprocess(tensor, geometries=[geometry])
    kept = back.get_fdata() > -1000
    assert kept.sum() == inside.sum() > 100
    np.testing.assert_allclose(back.get_fdata()[kept], image.get_fdata()[kept], atol=1e-3)

    (made,) = processor.postprocess(torch.zeros(1, 1, 6, 5, 8))
    assert "".join(nib.aff2axcodes(made.affine)) == code
    np.testing.assert_allclose(made.affine @ [2.5, 2, 3.5, 1], [0, 0, 0, 1])


def test_a_volume_without_input_is_centred_at_the_origin():
    processor = VolumeProcessor(spacing=(1, 2, 3))
    (image,) = processor.postprocess(torch.zeros(1, 1, 4, 5, 6))
    expected = np.diag([1.0, 2, 3, 1])
    expected[:3, 3] = (-1.5, -4, -7.5)
    np.testing.assert_array_equal(image.affine, expected)
    assert image.header.get_zooms() == (1, 2, 3)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    np.testing.assert_allclose(image.get_qform(), expected, atol=1e-6)
    assert image.get_data_dtype() == np.float32


@pytest.mark.parametrize(
    ("length", "size", "before"), [(155, 256, 50), (240, 256, 8), (5, 8, 1), (9, 4, -2), (9, 5, -2), (7, 7, 0)]
)
def test_crop_and_pad_are_centred_with_the_odd_voxel_at_the_end(length, size, before):
    values = np.arange(1, length + 1, dtype=np.float32).reshape(length, 1, 1)
    processor = VolumeProcessor(size=(size, 1, 1), intensity="window", low=0, high=1000, value_range=(0, 1))
    tensor, geometry = processor.preprocess(values, unit="HU")
    line = tensor.flatten().numpy() * 1000
    first = max(before, 0)
    assert round(float(line[first])) == 1 + max(-before, 0)
    assert (line > 0.5).sum() == min(length, size)
    back = processor.postprocess(tensor, geometries=[geometry])[0].get_fdata().ravel()
    expected = values.ravel().copy()
    expected[: max(-before, 0)] = expected[max(-before, 0) + size :] = 0
    np.testing.assert_allclose(back, expected, atol=1e-3)


def test_padding_at_the_end():
    """cWDM: 240 x 240 x 155 becomes 224 x 224 x 160, cropped on both sides, padded behind."""
    values = random_volume((12, 12, 5))
    tensor, geometry = VolumeProcessor(size=(10, 10, 8), padding="end", **HU).preprocess(values)
    np.testing.assert_allclose(hu(tensor)[:, :, :5], values[1:11, 1:11], atol=1e-3)
    assert (hu(tensor)[:, :, 5:] == -1000).all()
    assert geometry.model_affine[2][3] == geometry.affine[2][3]


def test_halving_the_resolution_is_the_published_average_pooling():
    """WDM at 128: quantiles and min-max on the native volume, zero-padding, then means over 2 x 2 x 2 voxels."""
    values = np.random.default_rng(1).gamma(2, 100, (24, 24, 16)).astype(np.float32)
    low, high = np.quantile(values, [0.001, 0.999])
    published = np.pad((np.clip(values, low, high) - low) / (high - low), [(4, 4), (4, 4), (8, 8)])
    published = 2 * torch.nn.functional.avg_pool3d(torch.from_numpy(published)[None, None].float(), 2) - 1
    processor = VolumeProcessor(spacing=(2, 2, 2), size=(16, 16, 16))
    tensor, geometry = processor.preprocess(nib.Nifti1Image(values, np.eye(4)))
    torch.testing.assert_close(tensor, published, atol=2e-6, rtol=0)
    assert geometry.resampled
    assert (geometry.low, geometry.high) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(("code", "spacing"), [("RAS", (0.7, 0.7, 3.0)), ("SLP", (1.2, 2.0, 0.9)), ("AIL", (2, 2, 2))])
def test_anisotropic_volumes_keep_their_place(code, spacing):
    image = oriented_image(code, shape=(9, 10, 8), spacing=spacing)
    processor = VolumeProcessor(spacing=(1, 1, 1), **HU)
    tensor, geometry = processor.preprocess(image)
    grid = np.array(geometry.model_affine)
    np.testing.assert_allclose(np.abs(np.diag(grid)[:3]), 1)
    # away from the border, a linear intensity survives interpolation exactly and means over voxels to 1/30 voxel
    core = (slice(2, -3),) * 3
    np.testing.assert_allclose(hu(tensor)[core], world_values(grid, geometry.model_shape)[core], atol=0.5)
    (back,) = processor.postprocess(tensor, geometries=[geometry])
    assert back.shape == image.shape
    np.testing.assert_array_equal(back.affine, image.affine)
    np.testing.assert_allclose(back.get_fdata()[core], image.get_fdata()[core], atol=1)
    assert back.get_fdata().min() > -1000


def test_the_resampled_grid_covers_the_same_field_of_view():
    image = oriented_image("RAS", shape=(9, 10, 7), spacing=(1, 1, 1))
    _, geometry = VolumeProcessor(spacing=(2, 3, 0.5), **HU).preprocess(image)
    assert geometry.model_shape == (5, 4, 14)
    corner = np.array(geometry.model_affine) @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(corner, image.affine @ [-0.5, -0.5, -0.5, 1])


@pytest.mark.parametrize("degrees", [1, 12, 80])
def test_an_oblique_volume_is_resampled_and_returns_to_its_own_grid(degrees):
    affine, shape = rotated_affine(degrees, (1.0, 1.2, 1.5)), (12, 11, 10)
    image = nib.Nifti1Image(world_values(affine, shape).astype(np.float32), affine)
    processor = VolumeProcessor(**HU)
    tensor, geometry = processor.preprocess(image)
    grid = np.array(geometry.model_affine)
    assert geometry.resampled
    np.testing.assert_array_equal(grid[:3, :3], np.diag(np.diag(grid[:3, :3])))
    index = (
        np.linalg.inv(affine)
        @ grid
        @ np.concatenate([np.indices(tensor.shape[2:]).reshape(3, -1), np.ones((1, tensor[0, 0].numel()))])
    )
    deep = ((index[:3] > 0) & (index[:3] < np.array(shape)[:, None] - 1)).all(axis=0)
    outside = ((index[:3] < -0.6) | (index[:3] > np.array(shape)[:, None] - 0.4)).any(axis=0)
    assert deep.sum() > 500
    np.testing.assert_allclose(hu(tensor).ravel()[deep], world_values(grid, tensor.shape[2:]).ravel()[deep], atol=0.05)
    assert (hu(tensor).ravel()[outside] == -1000).all()
    (back,) = processor.postprocess(tensor, geometries=[geometry])
    np.testing.assert_array_equal(back.affine, affine)
    core = (slice(3, -3),) * 3
    np.testing.assert_allclose(back.get_fdata()[core], image.get_fdata()[core], atol=0.1)


def test_rounding_in_an_affine_does_not_blur():
    affine = np.eye(4)
    affine[0, 1], affine[1, 0] = 1e-5, -1e-5
    values = random_volume((6, 7, 8))
    tensor, geometry = VolumeProcessor(**HU).preprocess(nib.Nifti1Image(values, affine))
    assert not geometry.resampled
    np.testing.assert_allclose(hu(tensor), values, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_coarser_grid_takes_the_mean_of_whole_voxels(factor):
    values = random_volume((24, 12, 12))
    tensor, _ = VolumeProcessor(spacing=(factor,) * 3, **HU).preprocess(
        reorient(nib.Nifti1Image(values, np.eye(4)), "SLP")
    )
    means = torch.nn.functional.avg_pool3d(torch.from_numpy(values)[None, None], factor)
    np.testing.assert_allclose(hu(tensor), means[0, 0], atol=1e-3)


def test_a_finer_grid_is_linear_interpolation():
    values = random_volume((2, 1, 1))
    tensor, _ = VolumeProcessor(spacing=(0.5, 1, 1), **HU).preprocess(nib.Nifti1Image(values, np.eye(4)))
    first, last = values.ravel()
    expected = [first, 0.75 * first + 0.25 * last, 0.25 * first + 0.75 * last, last]
    np.testing.assert_allclose(hu(tensor).ravel(), expected, atol=1e-3)


def test_a_much_coarser_oblique_grid_does_not_alias():
    """Noise averaged over 5 x 5 x 5 voxels nearly vanishes; trilinear sampling alone would leave half of it."""
    values = random_volume((40, 40, 40))
    tensor, _ = VolumeProcessor(spacing=(5, 5, 5), size=(4, 4, 4), **HU).preprocess(
        nib.Nifti1Image(values, rotated_affine(20))
    )
    assert 20 < hu(tensor).std() < 0.15 * values.std()


def test_oblique_slabs_join(monkeypatch):
    image = nib.Nifti1Image(random_volume((9, 10, 11)), rotated_affine(20))
    whole, geometry = VolumeProcessor(**HU).preprocess(image)
    monkeypatch.setattr("voxdiff.volume_grids._SLAB_VOXELS", 3 * geometry.model_shape[1] * geometry.model_shape[2])
    assert torch.equal(VolumeProcessor(**HU).preprocess(image)[0], whole)


def test_space_code_of_the_input_is_kept():
    image = oriented_image("LPS")
    image.set_sform(image.affine, code=4)
    tensor, geometry = VolumeProcessor(**HU).preprocess(image)
    (back,) = VolumeProcessor(**HU).postprocess(tensor, geometries=[geometry])
    assert int(back.header["sform_code"]) == 4


# --- intensities


def test_hounsfield_units_return_within_one():
    values = np.linspace(-1500, 1500, 3001, dtype=np.int16).reshape(3001, 1, 1)
    processor = VolumeProcessor(**HU)
    tensor, geometry = processor.preprocess(nib.Nifti1Image(values, np.eye(4)))
    assert (tensor.min(), tensor.max()) == (-1, 1)
    back = processor.postprocess(tensor, geometries=[geometry])[0]
    assert np.abs(back.get_fdata() - np.clip(values, -1000, 1000)).max() < 0.01
    assert voxdiff.volumes.intensity_unit(back) == "HU"
    half = processor.postprocess(tensor.to(torch.float16).float(), output_type="np")[0, 0]
    assert np.abs(half - np.clip(values, -1000, 1000)).max() <= 1


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_percentiles_of_the_whole_volume(value_range):
    values = np.random.default_rng(0).gamma(2, 100, (20, 20, 20)).astype(np.float32)
    values[:10] = 0
    processor = VolumeProcessor(low=0.1, high=99.9, value_range=value_range)
    tensor, geometry = processor.preprocess(values)
    low, high = np.quantile(values, [0.001, 0.999])
    expected = (np.clip(values, low, high) - low) / (high - low)
    bottom, top = value_range
    np.testing.assert_allclose(tensor[0, 0], expected * (top - bottom) + bottom, atol=1e-5)
    (back,) = processor.postprocess(tensor, geometries=[geometry])
    np.testing.assert_allclose(back.get_fdata(), expected, atol=1e-5)
    assert voxdiff.volumes.intensity_unit(back) == "a.u."


def test_percentiles_of_the_foreground():
    values = np.zeros((10, 10, 10), np.float32)
    values[:2] = np.linspace(100, 200, 200).reshape(2, 10, 10)
    _, geometry = VolumeProcessor(low=10, high=90, inside="foreground").preprocess(values)
    assert (geometry.low, geometry.high) == pytest.approx((110, 190))
    _, geometry = VolumeProcessor(low=10, high=90).preprocess(values)
    assert geometry.low == 0
    values[values == 0] = 500
    _, geometry = VolumeProcessor(low=10, high=90, inside="foreground", background=500).preprocess(values)
    assert geometry.high == pytest.approx(190)


def test_minmax_and_clip_below():
    """LIDC as WDM prepares it: nothing below -1000, the 99.9 % quantile, then min-max."""
    values = np.linspace(-3000, 500, 1000, dtype=np.float32).reshape(10, 10, 10)
    _, geometry = VolumeProcessor(intensity="minmax").preprocess(values)
    assert (geometry.low, geometry.high) == (-3000, 500)
    _, geometry = VolumeProcessor(low=0, high=99.9, clip_below=-1000).preprocess(values)
    assert geometry.low == -1000
    assert geometry.high == pytest.approx(np.quantile(values, 0.999), rel=1e-5)


def test_labels_are_never_interpolated():
    labels = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    image = nib.Nifti1Image(labels, rotated_affine(12))
    processor = VolumeProcessor(intensity="labels", high=3, spacing=(0.5, 0.5, 0.5))
    tensor, geometry = processor.preprocess(image)
    assert np.allclose(np.unique(tensor), [-1, -1 / 3, 1 / 3, 1])
    (back,) = processor.postprocess(tensor + 0.1, geometries=[geometry])
    assert back.get_data_dtype() == np.uint8
    assert (np.asarray(back.dataobj) == labels).mean() > 0.8
    finer, _ = processor.preprocess(nib.Nifti1Image(labels, np.eye(4)))
    repeated = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(processor.postprocess(finer, output_type="np")[0, 0], repeated)
    np.testing.assert_allclose(finer[0, 0], repeated / 1.5 - 1, atol=1e-6)
    for exact in (VolumeProcessor(intensity="labels", high=3), VolumeProcessor(intensity="labels", high=200)):
        tensor, geometry = exact.preprocess(image.__class__(labels, np.eye(4)))
        np.testing.assert_array_equal(exact.postprocess(tensor, geometries=[geometry])[0].dataobj, labels)
        assert exact.postprocess(tensor, output_type="pt").dtype == torch.uint8
        np.testing.assert_array_equal(exact.postprocess(tensor, output_type="np")[0, 0], labels)


def test_background_fills_what_the_model_does_not_see():
    values = np.full((6, 6, 6), 40.0, np.float32)
    values[0, 0, 0] = -300
    processor = VolumeProcessor(size=(8, 4, 4), background=-500, **HU)
    tensor, geometry = processor.preprocess(values)
    assert hu(tensor)[0, 0, 0] == -500
    back = processor.postprocess(tensor, geometries=[geometry])[0].get_fdata()
    assert back[0, 0, 0] == -500
    assert back[3, 3, 3] == pytest.approx(40, abs=1e-3)
    tensor, geometry = processor.preprocess(values, background=100)
    assert hu(tensor)[0, 0, 0] == pytest.approx(100, abs=1e-3)
    assert geometry.background == pytest.approx(100, abs=1e-3)


def test_a_hounsfield_model_refuses_what_looks_like_mr():
    values = random_volume((4, 4, 4)) + 900
    processor = VolumeProcessor(**HU)
    with pytest.raises(ValueError, match=r"no value below .* looks? like CT in HU.*unit='HU'.*background="):
        processor.preprocess(values)
    np.testing.assert_allclose(hu(processor.preprocess(values, unit="HU")[0]), values.clip(None, 1000), atol=1e-3)
    _, geometry = processor.preprocess(values, background=0)
    assert geometry.background == pytest.approx(0, abs=1e-3)
    processor.preprocess(values - 1000)
    VolumeProcessor().preprocess(values)
    with pytest.raises(ValueError, match=r"is in 'a.u.', but this model works in 'HU'"):
        processor.preprocess(values - 1000, unit="a.u.")


# --- what comes in and goes out


def test_input_kinds_agree(tmp_path):
    values = random_volume((4, 5, 6))
    processor = VolumeProcessor(spacing=(2, 2, 2), size=(6, 6, 6), **HU)
    image = nib.Nifti1Image(values, processor.model_affine(values.shape))
    nib.save(image, tmp_path / "volume.nii.gz")
    inputs = [values, torch.from_numpy(values), image, tmp_path / "volume.nii.gz", str(tmp_path / "volume.nii.gz")]
    tensors, geometries = zip(*(processor.preprocess(volume) for volume in inputs), strict=True)
    for tensor, geometry in zip(tensors, geometries, strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[0])
        assert geometry == geometries[0]


def test_output_types():
    processor = VolumeProcessor(**HU)
    volumes = torch.linspace(-1.5, 1.5, 2 * 3 * 4 * 4 * 4).reshape(2, 3, 4, 4, 4).requires_grad_()
    before = volumes.detach().clone()
    assert processor.postprocess(volumes, output_type="latent") is volumes
    pt = processor.postprocess(volumes, output_type="pt")
    assert pt.shape == volumes.shape
    torch.testing.assert_close(pt, volumes.clamp(-1, 1) * 1000, atol=1e-3, rtol=0)
    pt.sum().backward()
    assert volumes.grad is not None
    assert volumes.grad.max() == pytest.approx(1000)
    array = processor.postprocess(volumes, output_type="np")
    np.testing.assert_allclose(array, pt.detach(), atol=1e-3)
    images = processor.postprocess(volumes)
    assert [image.shape for image in images] == [(4, 4, 4, 3)] * 2
    np.testing.assert_allclose(np.moveaxis(images[1].get_fdata(), -1, 0), array[1], atol=1e-3)
    assert torch.equal(volumes.detach(), before)
    assert processor.postprocess(volumes.bfloat16(), output_type="pt").dtype == torch.float32


def test_several_volumes_each_return_to_their_own_grid():
    processor = VolumeProcessor(size=(6, 6, 6), **HU)
    images = [oriented_image("LSA"), oriented_image("RAS", shape=(4, 4, 4))]
    tensors, geometries = zip(*(processor.preprocess(image) for image in images), strict=True)
    back = processor.postprocess(torch.cat(tensors).repeat(1, 2, 1, 1, 1), geometries=geometries)
    for image, result in zip(images, back, strict=True):
        assert result.shape == (*image.shape, 2)
        np.testing.assert_array_equal(result.affine, image.affine)
    np.testing.assert_allclose(back[1].get_fdata()[..., 1], images[1].get_fdata(), atol=1e-3)


def test_the_configuration_is_plain_and_returns():
    processor = VolumeProcessor(
        orientation="LPS", spacing=(1, 1, 2.5), size=np.array([8, 8, 8]), value_range=(0, 1), background=-1000, **HU
    )
    config = json.loads(json.dumps(processor.to_dict()))
    assert VolumeProcessor.from_dict(config) == processor
    assert hash(VolumeProcessor.from_dict(config)) == hash(processor)
    assert config["size"] == [8, 8, 8]
    assert config["unit"] == "HU"
    for value in config.values():
        assert not isinstance(value, list) or not any(isinstance(item, str) for item in value)
    with pytest.raises(AttributeError):
        processor.size = (1, 1, 1)
    assert VolumeProcessor.from_dict({}) == VolumeProcessor()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colour": 1}, "configuration has 'colour'; it may have intensity, low, .* orientation, spacing, size"),
        ({"orientation": "RAX"}, "'RAX'; use one of the 48 axis codes"),
        ({"orientation": "RLS"}, "'RLS'; use one of the 48 axis codes"),
        ({"orientation": "RA"}, "'RA'; use one of the 48 axis codes"),
        ({"orientation": None}, "None; use one of the 48 axis codes"),
        ({"spacing": [1, 1]}, r"spacing is \[1, 1\]; give three positive values in mm"),
        ({"spacing": [1, 1, 0]}, "spacing is .* give three positive values in mm"),
        ({"spacing": "1mm"}, "spacing is '1mm'; give three positive values in mm"),
        ({"spacing": 2}, "spacing is 2; give three positive values in mm"),
        ({"size": [8, 8, 8.5]}, "size is .* give three positive whole numbers"),
        ({"size": [8, 8, 0]}, "size is .* give three positive whole numbers"),
        ({"padding": "left"}, "padding is 'left'; use one of 'center', 'end'"),
        ({"intensity": "zscore"}, "'zscore'; use one of 'window', 'percentile', 'minmax', 'labels'"),
        ({"inside": "brain"}, "'brain'; use one of 'volume', 'foreground'"),
        ({"inside": "foreground", **HU}, "only 'percentile' reads it"),
        ({"low": 60, "high": 40}, "percentiles are 60.0 and 40.0; give low below high, both from 0 to 100"),
        ({"high": 101}, "both from 0 to 100"),
        ({"low": float("nan")}, "low is .* give one finite number"),
        ({"low": True}, "low is .* give one finite number"),
        ({"intensity": "window", "low": -1000}, "window is -1000.0 to None; give low and high"),
        ({"intensity": "window", "low": 5, "high": 5}, "low below high"),
        ({"intensity": "minmax", "high": 5}, "'minmax' rule takes both from the volume"),
        ({"intensity": "labels"}, "labels run from None to None; give high, a whole number from 1 to 255"),
        ({"intensity": "labels", "high": 300}, "from 1 to 255"),
        ({"intensity": "labels", "low": 1, "high": 3}, "from 1 to 255"),
        ({"clip_below": -1000, **HU}, "only 'percentile' and 'minmax' read it"),
        ({"unit": "HU"}, "unit is 'HU'; under the 'percentile' rule values come back in 'a.u.'"),
        ({"unit": 3, **HU}, "unit is 3"),
        ({"value_range": [1, -1]}, r"value_range is \[1.0, -1.0\]; give two numbers, the lower first"),
        ({"background": -2000, **HU}, "background is -2000; choose .* from -1000 to 1000"),
    ],
)
def test_an_impossible_configuration_explains_itself(config, message):
    with pytest.raises(ValueError, match=message) as error:
        VolumeProcessor.from_dict(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "processor", "message"),
    [
        (np.zeros((4, 4)), {}, r"The array has shape \(4, 4\); give a 3D volume"),
        (np.zeros((4, 4, 4, 2)), {}, r"has shape \(4, 4, 4, 2\); give a 3D volume"),
        (np.zeros((4, 0, 4)), {}, "is empty"),
        (np.full((2, 2, 2), np.nan), {}, "holds 8 NaN or infinite voxels"),
        (np.full((2, 2, 2), np.inf), HU, "holds 8 NaN or infinite voxels"),
        (np.zeros((2, 2, 2), complex), {}, "holds complex128 voxels"),
        (torch.zeros(1, 1, 4, 4, 4), {}, r"The tensor has shape \(1, 1, 4, 4, 4\)"),
        (np.ones((2, 2, 2)), {}, "has no contrast, the 'percentile' rule found 1 at both ends"),
        (np.ones((2, 2, 2)), {"intensity": "minmax"}, "has no contrast, the 'minmax' rule"),
        (np.ones((2, 2, 2)), {"inside": "foreground"}, "is background everywhere"),
        (np.full((2, 2, 2), 4), {"intensity": "labels", "high": 3}, "holds the label 4; .* whole numbers 0 to 3"),
        (np.full((2, 2, 2), -1), {"intensity": "labels", "high": 3}, "holds the label -1"),
        (np.full((2, 2, 2), 1.5), {"intensity": "labels", "high": 3}, "holds the label 1.5"),
    ],
)
def test_an_impossible_volume_explains_itself(values, processor, message):
    with pytest.raises(ValueError, match=message) as error:
        VolumeProcessor(**processor).preprocess(values)
    assert "\n" not in str(error.value)


def test_an_impossible_volume_is_named(tmp_path):
    path = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=re.escape(f"The volume '{path}' has no contrast")):
        VolumeProcessor().preprocess(path)
    with pytest.raises(ValueError, match="The image has no contrast"):
        VolumeProcessor().preprocess(nib.load(path))


def test_impossible_outputs_explain_themselves():
    processor = VolumeProcessor()
    _, geometry = processor.preprocess(random_volume((4, 4, 4)))
    with pytest.raises(ValueError, match="output_type is 'pil'; use one of 'nifti', 'pt', 'np', 'latent'"):
        processor.postprocess(torch.zeros(1, 1, 4, 4, 4), output_type="pil")
    with pytest.raises(ValueError, match=r"volumes has shape \(4, 4, 4\); give \(batch, channels, x, y, z\)"):
        processor.postprocess(torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match="1 geometries came with 2 volumes"):
        processor.postprocess(torch.zeros(2, 1, 4, 4, 4), geometries=[geometry])
    with pytest.raises(ValueError, match=r"grid \(8, 8, 8\), but its geometry belongs to the grid \(4, 4, 4\)"):
        processor.postprocess(torch.zeros(1, 1, 8, 8, 8), geometries=[geometry])
    with pytest.raises(ValueError, match="NaN or infinite voxels"):
        processor.postprocess(torch.full((1, 1, 4, 4, 4), torch.nan))


def test_the_package_exports_the_contract():
    assert voxdiff.VolumeProcessor is VolumeProcessor
    assert voxdiff.load_volume is voxdiff.volumes.load_volume
    assert voxdiff.save_volumes is voxdiff.volumes.save_volumes
