"""`org/wdm-tiny` loads from a folder, from a cache without a network, and from a Hub, by three ways of asking."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch
from conftest import make_pipeline
from diffusers.utils import dynamic_modules_utils
from fakehub import FakeHub
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled

import voxdiff
from voxdiff import WaveletDiffusionPipeline

REPO = "org/wdm-tiny"
SHA = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
WAYS = {
    "class": WaveletDiffusionPipeline.from_pretrained,
    "auto": voxdiff.Pipeline.from_pretrained,
    "diffusers": lambda source, **options: diffusers.DiffusionPipeline.from_pretrained(
        source, custom_pipeline="pipeline", trust_remote_code=True, **options
    ),
}

# Runs where only diffusers is imported at first, as in a script of somebody who has voxdiff installed.
ONLINE = """
import json, sys
folder, repo = sys.argv[1:]
import diffusers
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
remote = {"custom_pipeline": "pipeline", "trust_remote_code": True}
result = {}
for name, load in {
    "repository, nobody imported voxdiff": lambda: DiffusionPipeline.from_pretrained(repo, **remote),
    "component, nobody imported voxdiff": lambda: diffusers.AutoModel.from_pretrained(folder, subfolder="unet"),
    "folder, nobody imported voxdiff": lambda: DiffusionPipeline.from_pretrained(folder, **remote),
}.items():
    try:
        result[name] = type(load()).__name__
    except ValueError as error:
        result[name] = str(error)
result["registered"] = "voxdiff" in LOADABLE_CLASSES

import torch, voxdiff
def volumes(pipe):
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
    return {"class": type(pipe).__name__, "sum": output.volumes.double().sum().item(), **output.provenance[0]}

result["diffusers"] = volumes(DiffusionPipeline.from_pretrained(repo, **remote))
result["auto"] = volumes(voxdiff.Pipeline.from_pretrained(repo))
pipe = voxdiff.WaveletDiffusionPipeline.from_pretrained(repo)
result["class"] = volumes(pipe)
result["model"] = type(voxdiff.WaveletUNet3DModel.from_pretrained(repo, subfolder="unet")).__name__
result["auto model"] = type(diffusers.AutoModel.from_pretrained(repo, subfolder="unet")).__name__
pipe.push_to_hub("org/pushed")
result["pushed"] = volumes(voxdiff.Pipeline.from_pretrained("org/pushed"))
for name, load in {
    "pickles": lambda: voxdiff.Pipeline.from_pretrained("org/pickled"),
    "pickled model": lambda: voxdiff.WaveletUNet3DModel.from_pretrained("org/pickled", subfolder="unet"),
}.items():
    try:
        load()
    except Exception as error:
        result[name] = [type(error).__name__, str(error)]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository as voxdiff publishes it: the pipeline and a two-line `pipeline.py`."""
    folder = tmp_path_factory.mktemp("published")
    make_pipeline().save_pretrained(folder)
    (folder / "pipeline.py").write_text("import voxdiff\nfrom voxdiff import WaveletDiffusionPipeline\n")
    return folder


@pytest.fixture(scope="module")
def expected(published):
    pipe = make_pipeline()
    return {
        "volumes": sample(pipe).volumes,
        "weights_sha256": {WEIGHTS: hashlib.sha256((published / WEIGHTS).read_bytes()).hexdigest()},
    }


@pytest.fixture(autouse=True, scope="module")
def modules_cache(tmp_path_factory):
    """Where diffusers copies a repository's `pipeline.py`; not the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_cache(cache, files, sha=SHA):
    """A Hub cache as one online call leaves it behind, the listing of the repository included."""
    root = cache / f"models--{REPO.replace('/', '--')}"
    for path, content in files.items():
        (root / "snapshots" / sha / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "snapshots" / sha / path).write_bytes(content)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(sha)
    (root / "trees").mkdir()
    listing = {path: {"size": len(content), "blob_id": "0" * 40} for path, content in files.items()}
    (root / "trees" / f"{sha}.json").write_text(json.dumps({"format_version": 1, "files": listing}))
    return cache


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")


@pytest.mark.parametrize("way", WAYS)
def test_from_a_folder(way, published, expected):
    pipe = WAYS[way](str(published))
    assert type(pipe) is WaveletDiffusionPipeline
    output = sample(pipe)
    torch.testing.assert_close(output.volumes, expected["volumes"])
    record = output.provenance[0]
    if way != "diffusers":  # plain diffusers never calls our `from_pretrained`
        assert record["model"] == str(published)
        assert record["revision"] is None
        assert record["weights_sha256"] == expected["weights_sha256"]


def load_offline(way, cache):
    assert is_offline_mode()
    if way != "diffusers":
        return WAYS[way](REPO, cache_dir=cache)
    with pytest.raises(OfflineModeIsEnabled):  # plain diffusers asks the Hub for the sha of every pipeline.py
        WAYS[way](REPO, cache_dir=cache)
    return WAYS[way](snapshot_download(REPO, cache_dir=cache))


@pytest.mark.parametrize("way", WAYS)
def test_from_a_cache_without_a_network(way, published, expected, tmp_path):
    pipe = load_offline(way, make_cache(tmp_path, files_of(published)))
    assert type(pipe) is WaveletDiffusionPipeline
    output = sample(pipe)
    torch.testing.assert_close(output.volumes, expected["volumes"])
    record = output.provenance[0]
    if way != "diffusers":
        assert record["model"] == REPO
        assert record["revision"] == SHA
        assert record["weights_sha256"] == expected["weights_sha256"]


def test_a_cache_of_pickles_is_refused(published, tmp_path):
    files = files_of(published)
    files[WEIGHTS.replace("safetensors", "bin")] = files.pop(WEIGHTS)
    for load in (WAYS["class"], WAYS["auto"]):
        with pytest.raises(ValueError, match="`voxdiff convert`"):
            load(REPO, cache_dir=make_cache(tmp_path / load.__self__.__name__, files))


def test_the_hashes_are_those_of_the_files_that_were_read(published, expected, tmp_path):
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    pipe = make_pipeline()
    pipe.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    variant = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    digest = hashlib.sha256((tmp_path / variant).read_bytes()).hexdigest()

    def hashes(**options):
        return sample(WaveletDiffusionPipeline.from_pretrained(tmp_path, **options)).provenance[0]["weights_sha256"]

    assert hashes() == expected["weights_sha256"]
    assert hashes(variant="fp16") == {variant: digest}
    assert hashes(unet=pipe.unet) == {}


def test_an_unknown_name_offline_is_one_clear_error(tmp_path):
    with pytest.raises(OSError, match="org/nothing"):
        WaveletDiffusionPipeline.from_pretrained("org/nothing", cache_dir=tmp_path)


@pytest.fixture(scope="module")
def online(published, tmp_path_factory):
    """What a process with a Hub saw, the Hub, and the cache that process left behind."""
    home = tmp_path_factory.mktemp("home")
    files = files_of(published)
    pickled = {**files, WEIGHTS.replace("safetensors", "bin"): files[WEIGHTS]}
    with FakeHub() as hub:
        sha = hub.add(REPO, files)
        hub.add("org/pickled", {path: content for path, content in pickled.items() if path != WEIGHTS})
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        process = subprocess.run(
            [sys.executable, "-c", ONLINE, str(published), REPO],
            env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
            capture_output=True,
            text=True,
        )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1]), hub, sha, home / "hub"


@pytest.mark.parametrize("way", WAYS)
def test_from_a_hub(way, online, expected):
    result, _, sha, _ = online
    record = result[way]
    assert record["class"] == "WaveletDiffusionPipeline"
    assert record["sum"] == pytest.approx(expected["volumes"].double().sum().item(), rel=1e-5)
    if way != "diffusers":
        assert record["model"] == REPO
        assert record["revision"] == sha
        assert record["weights_sha256"] == expected["weights_sha256"]


def test_a_component_from_a_hub(online):
    assert online[0]["model"] == "WaveletUNet3DModel"
    assert online[0]["auto model"] == "WaveletUNet3DModel"


def test_plain_diffusers_imports_voxdiff_for_a_folder_but_not_for_a_repository(online):
    result = online[0]
    assert result["folder, nobody imported voxdiff"] == "WaveletDiffusionPipeline"
    assert result["registered"]
    # diffusers checks the components before it reads pipeline.py, and imports no package that an index names
    assert "as defined in `model_index.json` does not exist" in result["repository, nobody imported voxdiff"]
    assert "has not been imported" in result["component, nobody imported voxdiff"]


def test_a_pushed_pipeline_comes_back(online, published, expected):
    result, hub, _, _ = online
    sha, files = hub.commit("models", "org/pushed", None)
    assert files[WEIGHTS] == (published / WEIGHTS).read_bytes()
    assert result["pushed"]["revision"] == sha
    assert result["pushed"]["weights_sha256"] == expected["weights_sha256"]
    assert result["pushed"]["sum"] == result["class"]["sum"]


def test_a_repository_of_pickles_is_refused(online):
    kind, message = online[0]["pickles"]
    assert kind == "ValueError"
    assert "`voxdiff convert`" in message
    assert online[0]["pickled model"][0] == "OSError"
    assert "diffusion_pytorch_model.safetensors" in online[0]["pickled model"][1]


@pytest.mark.parametrize("way", WAYS)
def test_the_cache_of_an_online_call_serves_without_a_network(way, online, expected):
    *_, sha, cache = online
    output = sample(load_offline(way, cache))
    torch.testing.assert_close(output.volumes, expected["volumes"])
    assert way == "diffusers" or output.provenance[0]["revision"] == sha
