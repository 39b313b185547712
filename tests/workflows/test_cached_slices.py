import json
from dataclasses import replace

import pytest
import torch
from slice_sources import MASK_VALUES, make_slice_autoencoder, make_slice_source

from voxdiff.workflows import cached_slices
from voxdiff.workflows.cached_slices import SliceLatentDataset, cache_slices, plan_slices


@pytest.fixture
def vae():
    return make_slice_autoencoder()


@pytest.fixture
def source():
    return make_slice_source(8, 12, 6)


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def test_latents_are_the_scaled_mean_of_every_slice(vae, source, tmp_path):
    latents = cache_slices(vae, source, tmp_path / "latents")
    item = latents[1]
    assert {name: tuple(part.shape) for name, part in item.items()} == {"image": (3, 4, 6, 6), "mask": (3, 4, 6, 6)}
    assert all(part.dtype == torch.float32 for part in item.values())
    seen = source.mask(1).float()
    for label, value in MASK_VALUES.items():
        seen[source.mask(1) == label] = value
    for name, volume in (("image", source.image(1)[0]), ("mask", seen)):
        for place in range(6):
            mean = vae.encode(volume[None, None, :, :, place]).latent_dist.mean[0]
            assert torch.allclose(item[name][..., place], 0.7 * mean, atol=1e-5)


def test_the_manifest_tells_all_and_is_enough(vae, source, tmp_path):
    written = cache_slices(vae, source, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["subject_id"] for entry in manifest["volumes"]] == ["subject-0", "subject-1", "subject-2"]
    assert {entry["file"] for entry in manifest["volumes"]} == set(files_of(tmp_path))
    vae.save_pretrained(tmp_path / "vae")
    read = SliceLatentDataset(tmp_path, type(vae).from_pretrained(tmp_path / "vae"))
    read.require_complete()
    assert (read.processor, read.mask_values) == (source.processor, MASK_VALUES)
    assert read.subject_ids == source.subject_ids
    assert all(same(read[index], written[index]) for index in range(3))


def test_only_what_is_missing_is_encoded_and_gives_the_same(vae, source, tmp_path):
    first = cache_slices(vae, source, tmp_path)
    before, items = files_of(tmp_path), list(first)
    gone = first.files[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of 3 latents, the first is {gone.name}"):
        first.require_complete()
    again = cache_slices(vae, make_slice_source(8, 12, 6, count=5), tmp_path)
    after = files_of(tmp_path)
    assert len(again) == len(after) == 5
    assert {name for name in before if before[name] == after[name]} == set(before) - {gone.name}
    assert all(same(items[index], again[index]) for index in range(3))


def test_an_interrupted_encoding_is_continued(vae, source, tmp_path, monkeypatch):
    encode = cached_slices._encode

    def stop_at_the_third(*arguments):
        if len(files_of(tmp_path)) == 2:
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(cached_slices, "_encode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        cache_slices(vae, source, tmp_path)
    monkeypatch.undo()
    kept = files_of(tmp_path)
    latents = cache_slices(vae, source, tmp_path)
    assert {name: files_of(tmp_path)[name] for name in kept} == kept
    whole = cache_slices(vae, source, tmp_path / "whole")
    assert all(same(latents[index], whole[index]) for index in range(3))


def test_a_plan_reads_no_volume(vae, source, tmp_path, monkeypatch):
    monkeypatch.setattr("voxdiff.training.slice_sources.SliceSource.__getitem__", None)
    assert (len(plan_slices(vae, source, tmp_path)), files_of(tmp_path)) == (3, {})


def test_other_mask_values_are_other_latents(vae, source, tmp_path):
    first = cache_slices(vae, source, tmp_path)[0]
    second = cache_slices(vae, replace(source, mask_values={**MASK_VALUES, 1: 0.5}), tmp_path)[0]
    assert torch.equal(first["image"], second["image"])
    assert not torch.equal(first["mask"], second["mask"])
    assert len(files_of(tmp_path)) == 6


def test_latents_of_another_autoencoder_are_refused(vae, source, tmp_path):
    cache_slices(vae, source, tmp_path)
    manifest = (tmp_path / "manifest.json").read_text()
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2)  # latents do not depend on the decoder
    SliceLatentDataset(tmp_path, vae)
    others = [make_slice_autoencoder(scaling_factor=0.5), make_slice_autoencoder()]
    others[0].load_state_dict(vae.state_dict())
    with torch.no_grad():
        others[1].load_state_dict(vae.state_dict())
        others[1].encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    for other in others:
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            SliceLatentDataset(tmp_path, other)
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            cache_slices(other, source, tmp_path)
    assert (tmp_path / "manifest.json").read_text() == manifest


def test_mistakes_are_one_sentence(vae, tmp_path):
    with pytest.raises(ValueError, match=r"slices have 8 x 7 pixels, .* whose x and y are multiples of 2"):
        cache_slices(vae, make_slice_source(8, 7, 6), tmp_path)
    with pytest.raises(ValueError, match=r"takes volumes in \[-1, 1\]"):
        cache_slices(vae, make_slice_source(8, 8, 6, value_range=(0.0, 1.0)), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; give a folder of encoded slices"):
        SliceLatentDataset(tmp_path, vae)
    with torch.no_grad():
        vae.quant_conv.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"latents that are not finite for subject-0"):
        cache_slices(vae, make_slice_source(8, 8, 6), tmp_path / "broken")


def test_damaged_and_foreign_files_are_named(vae, source, tmp_path):
    latents = cache_slices(vae, source, tmp_path)
    latents.files[0].write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"{latents.files[0].name} cannot be read .*; delete the file"):
        latents[0]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest.pop("kind")  # as latents of whole volumes
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is of kind volumes and format 1, this reads slices of format 1"):
        cache_slices(vae, source, tmp_path)
