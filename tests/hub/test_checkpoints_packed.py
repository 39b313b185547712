import argparse
import collections
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from voxdiff.hub.checkpoints_packed import Inert, InertUnpickler, read_packed_checkpoint


class Payload:
    """What an attacker hides in a checkpoint."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


class Settings(dict):
    """A mapping of a class that the reader does not know, as a training framework stores its configuration."""


class Callbacks(list):
    """A list of a class that the reader does not know."""


def packed(state_dict):
    return {
        "state_dict": state_dict,
        "payload": Payload(),
        "args": argparse.Namespace(a=1),
        "hyper_parameters": Settings(lr=1.0, nested=Settings(x=Payload())),
        "callbacks": Callbacks([1, Payload()]),
        "defaults": collections.defaultdict(list, a=[1]),
        "pickled": {Payload: {1, 2}},
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_only_the_tensors_of_a_packed_checkpoint_are_restored(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"a.weight": torch.randn(3, 4), "n": torch.tensor(7), "half": torch.randn(5).half()}
    state["parameter"] = torch.nn.Parameter(torch.randn(2))
    torch.save(packed(state), "model.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_packed_checkpoint("model.ckpt", "state_dict")
    assert list(read) == list(state) and all(torch.equal(read[key], state[key]) for key in state)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unknown_objects_are_inert(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("objects.pkl", "wb") as file:
        pickle.dump(packed({"n": 1}), file, protocol)
    with open("objects.pkl", "rb") as file:
        content = InertUnpickler(file).load()
    assert content["state_dict"] == {"n": 1}
    for key in ("payload", "args", "hyper_parameters", "callbacks"):
        assert isinstance(content[key], Inert), key
    assert not os.path.exists("pwned")


def test_a_bare_state_dict_needs_no_entry(tmp_path):
    state = {"w": torch.randn(3)}
    torch.save(state, tmp_path / "bare.pt")
    save_file(state, tmp_path / "bare.safetensors")
    for name in ("bare.pt", "bare.safetensors"):
        assert torch.equal(read_packed_checkpoint(tmp_path / name, "ema")["w"], state["w"])


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"model": {"w": torch.zeros(1)}, "epoch": 3}, "holds 'model', which is no tensor, and no entry 'ema'"),
        ({"ema": {}}, "holds no state dict 'ema'"),
        (torch.zeros(3), "holds no state dict 'ema'"),
        (torch.nn.Linear(2, 2), "holds no state dict 'ema'"),
        ({"ema": {"w": argparse.Namespace()}}, "holds 'w', which is no tensor"),
    ],
)
def test_a_checkpoint_without_the_entry_explains_itself(content, reason, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=reason) as error:
        read_packed_checkpoint(tmp_path / "model.pt", "ema")
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def truncate(path):
    torch.save({"w": torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        truncate,
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(range(256)) * 8),
    ],
)
def test_a_broken_file_explains_itself(make, tmp_path):
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(ValueError, match="no readable PyTorch checkpoint") as error:
        read_packed_checkpoint(path, "ema")
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_missing_file_explains_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_packed_checkpoint(tmp_path / "absent.pt", "ema")
