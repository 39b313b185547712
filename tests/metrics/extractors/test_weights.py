import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from voxdiff.metrics.extractors.weights import Published, convert_weights, file_sha256, load_strictly, read_weights

PUBLISHED = Published("tinynet", "tiny.pth", "https://example.org/tiny")


def make_network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def accept(state):
    return None


def test_missing_weights_say_what_to_download_and_how_to_pass_it(tmp_path):
    for weights in (None, tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="tinynet") as caught:
            read_weights(weights, PUBLISHED)
        assert "tiny.pth from https://example.org/tiny" in str(caught.value)
        assert "`voxdiff convert-extractor tinynet tiny.pth tinynet.safetensors`" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_is_refused_unread(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"not even a pickle")
    with pytest.raises(ValueError, match="convert it once with `voxdiff convert-extractor tinynet"):
        read_weights(path, PUBLISHED)


def test_a_broken_safetensors_file_is_named(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"weights\.safetensors' is no readable safetensors"):
        read_weights(tmp_path / "weights.safetensors", PUBLISHED)


def test_tensors_and_the_files_hash_come_back(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    state, sha256 = read_weights(tmp_path / "weights.safetensors", PUBLISHED)
    assert torch.equal(state["a"], torch.arange(3.0))
    assert sha256 == file_sha256(tmp_path / "weights.safetensors")


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_batch_counter_is_not_asked_for():
    state = {key: tensor for key, tensor in make_network().state_dict().items() if "num_batches" not in key}
    state["0.weight"] = torch.full((2, 1, 1, 1), 3.0)
    network = make_network()
    load_strictly(network, state, "tinynet")
    assert (network[0].weight == 3).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"0.bias": None}, "1 tensors missing, the first is 0.bias"),
        ({"2.bias": torch.zeros(2)}, "1 tensors unexpected, the first is 2.bias"),
        ({"0.weight": torch.zeros(3, 1, 1, 1)}, r"0.weight with \(3, 1, 1, 1\) instead of \(2, 1, 1, 1\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, complaint):
    state = {key: value for key, value in {**make_network().state_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=complaint):
        load_strictly(make_network(), state, "tinynet")


def test_conversion_unwraps_strips_prefixes_and_drops_heads(tmp_path):
    tensors = {
        "module.conv1.weight": torch.rand(2, 2),
        "module.bn1.num_batches_tracked": torch.tensor(3),
        "module.conv_seg.0.weight": torch.rand(2),
        "module.fc.weight": torch.rand(2),
    }
    torch.save({"state_dict": tensors, "epoch": 1}, tmp_path / "tiny.pth")
    left_out = convert_weights(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors", accept)
    assert left_out == list(tensors)[1:]
    converted = load_file(tmp_path / "tiny.safetensors")
    assert list(converted) == ["conv1.weight"]
    assert torch.equal(converted["conv1.weight"], tensors["module.conv1.weight"])


def test_the_numbers_of_a_sequential_backbone_become_names(tmp_path):
    names = {
        "backbone.0.weight": "conv1.weight",
        "backbone.1.running_mean": "bn1.running_mean",
        "backbone.4.0.downsample.1.bias": "layer1.0.downsample.1.bias",
        "backbone.7.2.conv3.weight": "layer4.2.conv3.weight",
        "backbone.layer2.0.conv1.weight": "layer2.0.conv1.weight",
    }
    torch.save({key: torch.rand(2) for key in names}, tmp_path / "tiny.pt")
    convert_weights(tmp_path / "tiny.pt", tmp_path / "tiny.safetensors", accept)
    assert set(load_file(tmp_path / "tiny.safetensors")) == set(names.values())


def test_nothing_is_written_if_the_tensors_do_not_fit(tmp_path):
    torch.save({"conv1.weight": torch.rand(2)}, tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="do not fit tinynet"):
        convert_weights(
            tmp_path / "tiny.pth",
            tmp_path / "tiny.safetensors",
            lambda state: load_strictly(make_network(), state, "tinynet"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth"]


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    (tmp_path / "tiny.pth").write_bytes(pickle.dumps({"conv1.weight": Touch()}, protocol=2))
    with pytest.raises(ValueError, match="no checkpoint of tensors alone"):
        convert_weights(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors", accept)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("source", "target", "error", "complaint"),
    [
        ("none.pth", "tiny.safetensors", FileNotFoundError, "There is no checkpoint"),
        ("tiny.pth", "tiny.pth", ValueError, r"give a name in \.safetensors"),
        ("tiny.pth", "tiny.safetensors", ValueError, "other things than a state dict"),
    ],
)
def test_what_cannot_be_converted_is_said(source, target, error, complaint, tmp_path):
    torch.save({"weights": [1, 2]}, tmp_path / "tiny.pth")
    with pytest.raises(error, match=complaint):
        convert_weights(tmp_path / source, tmp_path / target, accept)
