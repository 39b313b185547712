import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from autoencoders import make_autoencoder, make_kl_autoencoder
from class_sources import make_source, two_classes
from safetensors.torch import load_file

from voxdiff.workflows import cached_latents
from voxdiff.workflows.cached_latents import LatentDataset, cache_latents, plan_latents
from voxdiff.workflows.latent_manifest import encoder_hash


@pytest.fixture
def vae():
    return make_autoencoder()


def files_of(folder):
    """Finished files; those being written have names that begin with a dot."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.safetensors")}


@pytest.mark.parametrize("make_vae", [make_autoencoder, make_kl_autoencoder])
@torch.no_grad()
def test_latents_are_the_normalised_mean(make_vae, tmp_path):
    vae, source = make_vae(), make_source(16, 8, 8)
    latents = cache_latents(vae.train(), [source], tmp_path / "latents")
    assert vae.training
    volume = source.volume(1)[None]
    expected = vae.eval().normalize_latents(vae.encode(volume).latents)[0]
    assert torch.equal(latents[1]["latents"], expected)
    assert set(latents[1]) == {"latents"}
    assert (latents.buckets, latents.classes, latents.scalar_names) == ([[0, 1, 2]], {}, [])


def test_samples_carry_class_and_scalars_and_lie_in_the_bucket_of_their_grid(vae, tmp_path):
    latents = cache_latents(vae, two_classes(), tmp_path, scalar_names=["age"])
    assert len(latents) == 7
    assert latents.buckets == [[0, 1, 2, 5, 6], [3, 4]]
    shapes = [{tuple(latents[index]["latents"].shape) for index in bucket} for bucket in latents.buckets]
    assert shapes == [{(4, 8, 4, 4)}, {(4, 4, 4, 4)}]
    assert latents.classes == {"mr": 0, "ct": 1}
    assert [latents[index]["class_labels"].item() for index in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    assert [latents[index]["scalars"].tolist() for index in range(3)] == [[40], [50], [60]]
    assert latents[3]["scalars"].isnan().all()
    assert latents.has_absent_scalars
    assert (latents.scalar_ranges("mr"), latents.scalar_ranges("ct")) == ({"age": [40, 60]}, {})
    condition = latents.scalar_conditions()["age"]
    assert (condition["place"], condition["mean"]) == (0, 50)
    assert condition["std"] == pytest.approx(8.165, abs=1e-3)


def test_the_manifest_tells_all_and_is_enough(vae, tmp_path):
    sources = two_classes()
    written = cache_latents(vae, sources, tmp_path, scalar_names=["age"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["autoencoder"] == {"class": "AutoencoderPatchVolume", "encoder_sha256": encoder_hash(vae)}
    assert [part["grid"] for part in manifest["sources"]] == [[16, 8, 8], [8, 8, 8], [16, 8, 8]]
    assert manifest["sources"][0]["volumes"][2]["scalars"] == {"age": 60.0}
    assert {entry["file"] for part in manifest["sources"] for entry in part["volumes"]} == set(files_of(tmp_path))
    vae.save_pretrained(tmp_path / "vae")
    read = LatentDataset(tmp_path, type(vae).from_pretrained(tmp_path / "vae"))
    read.require_complete()
    assert read.processors == [(source.class_name, source.processor) for source in sources] == written.processors
    assert all(torch.equal(read[index]["latents"], written[index]["latents"]) for index in range(7))


def test_only_what_is_missing_is_encoded(vae, tmp_path):
    first = cache_latents(vae, [make_source(8, 8, 8)], tmp_path)
    before = files_of(tmp_path)
    gone = first.files[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of 3 latents, the first is {gone.name}"):
        first.require_complete()
    again = cache_latents(vae, [make_source(8, 8, 8), make_source(16, 8, 8)], tmp_path)
    after = files_of(tmp_path)
    assert len(again) == 6
    assert {name for name in before if before[name] == after[name]} == set(before) - {gone.name}


def test_an_interrupted_encoding_is_continued(vae, tmp_path, monkeypatch):
    encode, done = cached_latents._encode, []

    def stop_at_the_third(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(encode(*arguments))

    monkeypatch.setattr(cached_latents, "_encode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(vae, two_classes(), tmp_path)
    kept = files_of(tmp_path)
    assert len(kept) == 2
    monkeypatch.undo()
    latents = cache_latents(vae, two_classes(), tmp_path)
    assert {name: files_of(tmp_path)[name] for name in kept} == kept
    assert torch.equal(latents[6]["latents"], cache_latents(vae, two_classes(), tmp_path / "whole")[6]["latents"])


def test_a_plan_reads_no_volume(vae, tmp_path, monkeypatch):
    monkeypatch.setattr("voxdiff.training.class_sources.VolumeSource.volume", None)
    latents = plan_latents(vae, two_classes(), tmp_path)
    assert (len(latents), files_of(tmp_path)) == (7, {})


def test_latents_of_another_autoencoder_are_refused(vae, tmp_path):
    cache_latents(vae, [make_source(8, 8, 8)], tmp_path)
    manifest = (tmp_path / "manifest.json").read_text()
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2)  # latents do not depend on the decoder
    LatentDataset(tmp_path, vae)
    others = [make_kl_autoencoder(), make_autoencoder(patch_size=None), make_autoencoder()]
    with torch.no_grad():
        others[-1].encoder.conv_in.weight[0, 0, 0, 0, 0] += 1e-3
    for other in others:
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            LatentDataset(tmp_path, other)
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            cache_latents(other, [make_source(8, 8, 8)], tmp_path)
    assert (tmp_path / "manifest.json").read_text() == manifest


def test_another_latent_range_is_another_autoencoder(vae):
    before = encoder_hash(vae)
    vae.register_to_config(latent_max=vae.config.latent_max + 1)
    assert encoder_hash(vae) != before


def test_mistakes_are_one_sentence(vae, tmp_path):
    with pytest.raises(ValueError, match=r"The volume grid is \(12, 8, 8\), .* use 8 or 16 along x"):
        cache_latents(vae, [make_source(12, 8, 8)], tmp_path)
    with pytest.raises(ValueError, match=r"takes volumes in \[-1, 1\]"):
        cache_latents(vae, [make_source(8, 8, 8, value_range=(0.0, 1.0))], tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json; give a folder of encoded volumes"):
        LatentDataset(tmp_path, vae)
    same = make_source(8, 8, 8, scalars=[{"age": 3.0}] * 3)
    with pytest.raises(ValueError, match="The scalar age is 3 for all volumes; leave it out"):
        plan_latents(vae, [same], tmp_path, scalar_names=["age"]).scalar_conditions()
    with torch.no_grad():
        vae.quant_conv.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"latents that are not finite for None-0"):
        cache_latents(vae, [same], tmp_path / "broken")


def test_damaged_files_are_named(vae, tmp_path):
    latents = cache_latents(vae, [make_source(8, 8, 8)], tmp_path)
    latents.files[0].write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"{latents.files[0].name} cannot be read .*; delete the file"):
        latents[0]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="of kind volumes and format 99, this reads volumes of format 1"):
        LatentDataset(tmp_path, vae)


@pytest.mark.slow
def test_an_encoding_that_is_killed_leaves_whole_files_only(tmp_path):
    code = (
        "from autoencoders import make_autoencoder; from class_sources import make_source;"
        "from voxdiff.workflows.cached_latents import cache_latents;"
        f"cache_latents(make_autoencoder(), [make_source(32, 32, 32, count=300)], {str(tmp_path)!r})"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 200
    while len(files_of(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = files_of(tmp_path)
    assert 5 <= len(done) < 300
    assert all(load_file(tmp_path / name)["latents"].shape == (4, 16, 16, 16) for name in done)
    vae, source = make_autoencoder(), make_source(32, 32, 32, count=300)
    latents = cache_latents(vae, [source], tmp_path)
    latents.require_complete()
    assert {name: files_of(tmp_path)[name] for name in done} == done
