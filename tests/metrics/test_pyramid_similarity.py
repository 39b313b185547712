"""MS-SSIM of many pairs against the MS-SSIM of one pair."""

import pytest
import torch

from voxdiff.metrics.pyramid_similarity import (
    MsSsimSettings,
    SimilarityPyramid,
    full_precision,
    pooled,
    similarity_matrix,
)
from voxdiff.metrics.similarity import ms_ssim


def smooth_volumes(number, grid=(16, 16, 16)):
    """Random volumes in [0, 1] with structure at every scale."""
    coarse = torch.nn.functional.interpolate(torch.rand(number, 1, 4, 4, 4), size=grid, mode="trilinear")
    return (coarse + 0.1 * torch.randn(number, 1, *grid)).clamp(0, 1)


def one_by_one(volumes, others, **settings):
    pairs = [torch.cat([ms_ssim(volume[None], other[None], **settings) for other in others]) for volume in volumes]
    return torch.stack(pairs)


@pytest.mark.parametrize(
    ("grid", "settings"),
    [
        ((16, 16, 16), {"scales": 3, "kernel_size": 3}),
        ((13, 20, 17), {"scales": 2, "kernel_size": 5, "sigma": 0.7}),
        ((12, 12, 12), {"scales": 1, "kernel_size": 11, "sigma": 1.5}),
        ((64, 64, 64), {}),
    ],
)
def test_equals_the_value_of_single_pairs(grid, settings):
    volumes, others = smooth_volumes(2, grid), smooth_volumes(2, grid)
    settings_of_pyramid = MsSsimSettings(**settings)
    found = similarity_matrix(
        SimilarityPyramid(volumes, settings_of_pyramid), SimilarityPyramid(others, settings_of_pyramid)
    )
    torch.testing.assert_close(found, one_by_one(volumes, others, **settings), atol=1e-5, rtol=0)


def test_data_range_scales_with_the_values():
    volumes = smooth_volumes(3)
    unit = MsSsimSettings(scales=2)
    byte = MsSsimSettings(scales=2, data_range=255.0)
    in_unit, in_bytes = SimilarityPyramid(volumes, unit), SimilarityPyramid(255 * volumes, byte)
    torch.testing.assert_close(similarity_matrix(in_bytes, in_bytes), similarity_matrix(in_unit, in_unit))


def test_opposite_contrast_scores_zero_as_for_single_pairs():
    volume = smooth_volumes(1)
    settings = MsSsimSettings(scales=2)
    found = SimilarityPyramid(volume, settings).similarities(SimilarityPyramid(1 - volume, settings))
    assert found.tolist() == [0.0] == ms_ssim(volume, 1 - volume, scales=2).tolist()


def test_chunks_and_slices_do_not_change_values(monkeypatch):
    volumes = smooth_volumes(5)
    pyramid = SimilarityPyramid(volumes, MsSsimSettings(scales=3, kernel_size=3))
    whole = similarity_matrix(pyramid, pyramid)
    assert torch.allclose(whole.diagonal(), torch.ones(5), atol=1e-6)
    assert torch.equal(similarity_matrix(pyramid[1:3], pyramid[2:]), whole[1:3, 2:])
    monkeypatch.setattr("voxdiff.metrics.pyramid_similarity._CHUNK_VOXELS", {"cpu": 2 * 16**3})
    chunked = SimilarityPyramid(volumes, pyramid.settings)
    torch.testing.assert_close(similarity_matrix(chunked, chunked), whole, atol=1e-6, rtol=0)


def test_skipped_scales_leave_the_product_of_the_others():
    volumes = smooth_volumes(1) + 0.2 * torch.randn(3, 1, 16, 16, 16)
    settings = MsSsimSettings(scales=3, kernel_size=3)
    of_two, of_one = MsSsimSettings(scales=2, kernel_size=3), MsSsimSettings(scales=1, kernel_size=3)
    middle, coarsest = pooled(volumes, 1), pooled(volumes, 2)
    last = SimilarityPyramid(coarsest, of_one)
    both = SimilarityPyramid(middle, of_two)
    last, both = similarity_matrix(last, last), similarity_matrix(both, both)
    contrast = (both / last ** of_two.weights[1]) ** (1 / of_two.weights[0])
    found = SimilarityPyramid(middle, settings, skipped=1)
    expected = contrast ** settings.weights[1] * last ** settings.weights[2]
    torch.testing.assert_close(similarity_matrix(found, found), expected, atol=1e-4, rtol=0)


def test_low_precision_products_are_switched_off_and_on_again():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.is_grad_enabled()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": 6}, "scales is 6; give 1 to 5"),
        ({"scales": 0}, "scales is 0"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"sigma": 0.0}, "sigma is 0.0; give a positive number"),
        ({"data_range": -1.0}, "data_range is -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        MsSsimSettings(**settings)


def test_too_small_a_grid_and_a_wrong_shape():
    MsSsimSettings().check_grid((40, 40, 40))
    with pytest.raises(ValueError, match=r"39 x 40 x 40 is too small for 4 scales.*at least 40"):
        MsSsimSettings().check_grid((39, 40, 40))
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8, 8\).*\(number, 1, x, y, z\)"):
        SimilarityPyramid(torch.rand(2, 3, 8, 8, 8), MsSsimSettings())


def test_pyramids_of_other_settings_or_several_volumes_are_not_compared():
    volumes = smooth_volumes(2)
    settings = MsSsimSettings(scales=2, kernel_size=3)
    pyramid = SimilarityPyramid(volumes, settings)
    others = [
        SimilarityPyramid(volumes, MsSsimSettings(scales=2, kernel_size=3, sigma=2.0)),
        SimilarityPyramid(pooled(volumes, 1), settings, skipped=1),
    ]
    for first, second in [(pyramid, pyramid), (pyramid[:1], others[0]), (pyramid[:1], others[1])]:
        with pytest.raises(ValueError, match="give one volume and pyramids of the same settings"):
            first.similarities(second)
    with pytest.raises(ValueError, match="16 x 16 x 16 is too small"):
        SimilarityPyramid(pooled(volumes, 1), MsSsimSettings(scales=3, kernel_size=5), skipped=1)
