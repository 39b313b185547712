import pytest
from slice_sources import make_slice_autoencoder

from voxdiff import VolumeProcessor
from voxdiff.workflows.latent_manifest import (
    MANIFEST_FILE,
    encoder_hash,
    encoder_identity,
    latents_file,
    read_manifest,
    require_encodable,
    require_files,
    write_manifest,
)


@pytest.fixture
def vae():
    return make_slice_autoencoder()


def test_what_was_written_is_read(vae, tmp_path):
    write_manifest({"autoencoder": encoder_identity(vae), "volumes": ["a"]}, tmp_path / "new", kind="slices")
    assert read_manifest(tmp_path / "new", vae, kind="slices")["volumes"] == ["a"]
    before = (tmp_path / "new" / MANIFEST_FILE).stat().st_mtime_ns
    write_manifest({"autoencoder": encoder_identity(vae), "volumes": ["a"]}, tmp_path / "new", kind="slices")
    assert (tmp_path / "new" / MANIFEST_FILE).stat().st_mtime_ns == before
    write_manifest({"autoencoder": encoder_identity(vae), "volumes": ["b"]}, tmp_path / "new", kind="slices")
    assert read_manifest(tmp_path / "new", vae, kind="slices")["volumes"] == ["b"]


def test_latents_of_another_kind_or_autoencoder_are_refused(vae, tmp_path):
    manifest = {"autoencoder": encoder_identity(vae)}
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json; give a folder of encoded volumes"):
        read_manifest(tmp_path, vae)
    write_manifest(manifest, tmp_path)
    with pytest.raises(ValueError, match="is of kind volumes and format 1, this reads slices of format 1"):
        read_manifest(tmp_path, vae, kind="slices")
    with pytest.raises(ValueError, match="is of kind volumes"):
        write_manifest(manifest, tmp_path, kind="slices")
    vae.encoder.conv_in.bias.data += 1
    for refused in (lambda: read_manifest(tmp_path, vae), lambda: write_manifest({"autoencoder": {}}, tmp_path)):
        with pytest.raises(ValueError, match="were made by another autoencoder"):
            refused()


def test_the_hash_is_of_the_encoder_alone(vae):
    before = encoder_hash(vae)
    vae.decoder.conv_in.bias.data += 1
    assert encoder_hash(vae) == before
    vae.register_to_config(scaling_factor=3.0)
    assert encoder_hash(vae) != before


def test_a_file_is_named_by_all_that_its_latents_depend_on():
    assert latents_file("a", {"b": 1, "c": 2}) == latents_file("a", {"c": 2, "b": 1}) != latents_file("a", {"b": 1})


def test_volumes_have_one_grid_and_range():
    assert require_encodable(VolumeProcessor(size=(8, 8, 4))) == (8, 8, 4)
    for processor in (VolumeProcessor(), VolumeProcessor(size=(8, 8, 4), value_range=(0, 1))):
        with pytest.raises(ValueError, match=r"in \[-1, 1\] on one grid"):
            require_encodable(processor)


def test_missing_files_are_counted(tmp_path):
    (tmp_path / "a").touch()
    require_files(tmp_path, [tmp_path / "a"])
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 latents, the first is b"):
        require_files(tmp_path, [tmp_path / "a", tmp_path / "b"])
