"""The script under `accelerate launch`: killed and resumed, on two processes, and publishing what it made."""

import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from fakehub import FakeHub
from training_runs import TINY_COHORT, TINY_MODEL, assert_same_run, finish, launch, truncate, write_volumes

from voxdiff.training.checkpoints import list_checkpoints
from voxdiff.training.log import read_log

pytestmark = pytest.mark.slow

# A large epsilon, so that Adam does not turn rounding errors of tiny gradients into steps
RUN = ["--max_train_steps", "24", "--checkpointing_steps", "8", "--logging_steps", "3", "--adam_epsilon", "1e-4"]
RESUME = ["--resume_from_checkpoint", "latest"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Launches a run of the cohort."""
    cache = tmp_path_factory.mktemp("cache")

    def call(out, *arguments, batch, processes=1):
        options = [*TINY_COHORT, "--cache_dir", cache, *RUN, "--output_dir", out, "--train_batch_size", batch]
        return launch(*options, *arguments, processes=processes)

    return call


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """One process, never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "1 process(es)" in finish(start(out, batch=4))
    return out


def kill(process):
    """SIGKILL to the launcher and everything it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        member.kill()
    process.communicate()


def kill_when(process, condition):
    """Kill a run as soon as the condition holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    kill(process)


def kill_in_the_middle(process, out):
    log = out / "training_log.jsonl"
    kill_when(process, lambda: log.exists() and any(record["step"] >= 12 for record in read_log(log)))
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-8"]


def kill_while_saving(process, out):
    kill_when(process, lambda: (out / ".checkpoint-16.tmp").exists())
    return (out / ".checkpoint-16.tmp").exists()


def test_a_run_killed_in_a_step_and_while_saving_is_the_run_never_killed(start, whole, tmp_path):
    out = tmp_path / "out"
    kill_in_the_middle(start(out, batch=4), out)
    shutil.copytree(out, tmp_path / "killed")
    while not kill_while_saving(start(out, *RESUME, batch=4), out):  # the save was over before the kill: again
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "killed", out)
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-8"]
    finish(start(out, *RESUME, batch=4))
    assert_same_run(whole, out, checkpoint="checkpoint-24")
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("options", [{"batch": 2}, {"batch": 1, "accumulation": 2}])
def test_two_processes_are_one(start, whole, tmp_path, options):
    accumulation = ["--gradient_accumulation_steps", options.pop("accumulation", 1)]
    looks = ["--validation_steps", 12, "--validation_inference_steps", 1, "--gradient_checkpointing"]
    printed = finish(start(tmp_path / "out", *accumulation, *looks, processes=2, **options))
    assert "2 process(es)" in printed
    assert printed.count("step 3:") == 1
    assert_same_run(whole, tmp_path / "out", tolerance=1e-6, checkpoint="checkpoint-24")
    assert (tmp_path / "out" / "model_index.json").exists()


def test_two_processes_resume_bit_for_bit_and_on_one(start, whole, tmp_path):
    out = tmp_path / "out"
    kill_in_the_middle(start(out, batch=2, processes=2), out)
    subprocess.run(["cp", "-r", str(out), str(tmp_path / "one")], check=True)
    assert "2 process(es)" in finish(start(out, *RESUME, batch=2, processes=2))
    assert_same_run(whole, out, tolerance=1e-6, checkpoint="checkpoint-24")
    assert {path.name for path in (out / "checkpoint-24").glob("random*")} == {
        "random_states_0.pkl",
        "random_states_1.pkl",
    }
    assert "1 process(es)" in finish(start(tmp_path / "one", *RESUME, batch=4))
    assert_same_run(whole, tmp_path / "one", tolerance=1e-6, checkpoint="checkpoint-24")


def test_a_run_is_published_with_its_card(tmp_path):
    with FakeHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        options = ["--push_to_hub", "--hub_model_id", "org/tiny", "--hub_private_repo", "--validation_steps", "2"]
        run = [*TINY_COHORT, *options, "--max_train_steps", "2", "--output_dir", tmp_path / "out"]
        finish(launch(*run, HF_HOME=str(tmp_path / "home"), **environment))
        files = hub.repos[("models", "org/tiny")][-1][1]
        assert sorted(files) == [
            ".gitattributes",
            "README.md",
            "model_index.json",
            "pipeline.py",
            "scheduler/scheduler_config.json",
            "training_log.jsonl",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ]
        assert files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
        code = "import voxdiff; print(voxdiff.Pipeline.from_pretrained('org/tiny').unet.config.block_out_channels)"
        settings = {**os.environ, **environment, "HF_HOME": str(tmp_path / "elsewhere")}
        loaded = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
        assert "4, 8" in loaded.stdout, loaded.stderr


def test_the_launcher_shows_the_sentence(tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz"])
    truncate(tmp_path / "data" / "b.nii.gz")
    process = launch("--train_data_dir", tmp_path / "data", *TINY_MODEL, "--output_dir", tmp_path / "out", processes=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "error: 1 of 2 subjects cannot be used (b: The volume" in output
    assert not (tmp_path / "out").exists()
