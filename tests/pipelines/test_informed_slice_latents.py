import numpy as np
import pytest
import torch
from informed_slice_pipelines import make_informed_pipeline, make_slice_generator

from voxdiff.pipelines.informed_slice_latents import encode_masks, prepare_informed_latents, prepare_mask_latents
from voxdiff.pipelines.informed_slice_requests import InformedSlice, read_masks


@pytest.fixture(scope="module")
def pipe():
    return make_informed_pipeline(slice_unet=make_slice_generator())


@pytest.fixture(scope="module")
def requests(pipe):
    """Two masks of 6 x 9 voxels, which are padded to 8 x 12, and 3 slices."""
    masks = [np.random.default_rng(seed).integers(0, 3, (6, 9, 3)) for seed in range(2)]
    return read_masks(masks, pipe.volume_processor, pipe.mask_encoder)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_masks_are_padded_with_background_and_their_last_slice_is_repeated(pipe, requests):
    latents = prepare_mask_latents(pipe, None, requests, 5)
    assert latents.shape == (2, 4, 4, 6, 5)
    assert torch.equal(latents[..., :3], encode_masks(pipe, requests))
    assert torch.equal(latents[..., 3], latents[..., 2]) and torch.equal(latents[..., 4], latents[..., 2])
    padded = torch.nn.functional.pad(requests[1].places, (0, 0, 1, 2, 1, 1))
    alone = pipe.encode(pipe.mask_encoder.encode_index(padded)[None, None])
    torch.testing.assert_close(latents[1:, ..., :3], alone)


def test_given_latents_are_taken_as_they_are(pipe, requests):
    given, one = torch.randn(2, 4, 4, 6, 3), torch.randn(1, 4, 4, 6)
    assert torch.equal(prepare_mask_latents(pipe, given, requests, 3), given)
    informed = prepare_informed_latents(pipe, None, one, requests, start=1)
    assert torch.equal(informed, torch.cat([one, one]))


def test_given_slices_are_padded_with_the_lower_end(pipe, requests):
    slices = [InformedSlice(values=torch.rand(1, 1, 6, 9), source="ndarray") for _ in requests]
    informed = prepare_informed_latents(pipe, slices, None, requests, start=1)
    padded = torch.nn.functional.pad(slices[1].values, (1, 2, 1, 1), value=-1)
    torch.testing.assert_close(informed[1:], pipe.encode(padded[..., None])[..., 0])


def test_a_slice_is_generated_for_each_mask_at_the_start(pipe, requests, monkeypatch):
    asked = []
    monkeypatch.setattr(pipe, "generate_slice", lambda *arguments, **options: asked.append((*arguments, options)))
    prepare_informed_latents(pipe, None, None, requests, start=1, eta=0.5)
    assert asked == [(0.5, (8, 12), {"batch_size": 2, "eta": 0.5})]


def test_latents_of_other_masks_are_refused(pipe, requests):
    with pytest.raises(
        ValueError, match=r"mask_latents have the shape .*; this call needs a tensor of \(2, 4, 4, 6, 3\)"
    ):
        prepare_mask_latents(pipe, torch.zeros(2, 4, 4, 6, 5), requests, 5)
    with pytest.raises(ValueError, match=r"informed_slice_latents .* generate_slice of the size \(8, 12\)"):
        prepare_informed_latents(pipe, None, torch.zeros(3, 4, 4, 6), requests, start=1)
