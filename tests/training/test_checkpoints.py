import os
import resource
import stat

import pytest
import torch
from conftest import make_pipeline, make_unet
from training_runs import make_trainer, run_record

import voxdiff
from voxdiff.training import checkpoints
from voxdiff.training.checkpoints import find_checkpoint, list_checkpoints, read_state, save_model, save_pipeline
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective


def fake_checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / checkpoints.STATE_FILE).write_text("{}")
    return path


def test_the_latest_is_the_highest_complete_step(tmp_path):
    for step in (2, 10, 9):
        fake_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / ".checkpoint-12.tmp").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-10"
    assert find_checkpoint(tmp_path / "elsewhere", "latest") is None
    assert find_checkpoint(tmp_path / "elsewhere", str(tmp_path / "checkpoint-9")).name == "checkpoint-9"


def test_a_run_does_not_write_over_another(tmp_path):
    first, last = fake_checkpoint(tmp_path, 2), fake_checkpoint(tmp_path, 4)
    for request in (None, str(first)):
        with pytest.raises(ValueError, match=r"holds checkpoint-4 .*--resume_from_checkpoint latest"):
            find_checkpoint(tmp_path, request)
    assert find_checkpoint(tmp_path, str(last)) == last


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a complete checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path))


def test_only_the_newest_are_kept_and_leftovers_removed(tmp_path):
    (tmp_path / ".checkpoint-1.tmp").mkdir()
    (tmp_path / ".checkpoint-1.tmp" / "half.bin").write_bytes(b"x")
    make_trainer(tmp_path, max_train_steps=5, checkpointing_steps=1, checkpoints_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-5"]


class FullDisk(WaveletDiffusionObjective):
    """From the third step on no file may grow beyond a size."""

    def __call__(self, model, batch, noise):
        if batch["step"][0] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, self.limits[1]))
        return super().__call__(model, batch, noise)


@pytest.mark.parametrize("size", [4_000, 100_000])  # too small for the weights, or for the optimiser's state only
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, size):
    pipeline = make_pipeline()
    objective = FullDisk(pipeline)
    objective.bytes, objective.limits = size, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written \(.*\); the checkpoints before it are"):
            make_trainer(tmp_path, pipeline=pipeline, objective=objective).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, objective.limits)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    make_trainer(tmp_path, resume_from_checkpoint="latest").train()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0, this run has 1"),
        ({"train_batch_size": 3}, "global_batch_size 2, this run has 3"),
        ({"use_ema": False}, "use_ema True"),
        ({"pipeline": lambda: make_pipeline(band_scales=[2.0] + [1.0] * 7)}, "band_scales"),
        ({"pipeline": lambda: make_pipeline(scheduler="wdm-ddpm")}, "scheduler"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, named):
    make_trainer(tmp_path, max_train_steps=2).train()
    before = (tmp_path / "training_log.jsonl").read_text(), (tmp_path / "run.json").read_text()
    if "pipeline" in change:
        change = {"pipeline": change["pipeline"]()}
    with pytest.raises(ValueError, match=named):
        make_trainer(tmp_path, resume_from_checkpoint="latest", **change).train()
    assert before == ((tmp_path / "training_log.jsonl").read_text(), (tmp_path / "run.json").read_text())


def test_resuming_applies_new_optimiser_settings(tmp_path):
    make_trainer(tmp_path, max_train_steps=2).train()
    changed = {"learning_rate": 1e-3, "adam_weight_decay": 0.1, "adam_beta1": 0.5, "lr_warmup_steps": 4}
    trainer = make_trainer(tmp_path, resume_from_checkpoint="latest", **changed)
    trainer.train()
    group = torch.load(tmp_path / "checkpoint-4" / "optimizer.bin", weights_only=True)["param_groups"][0]
    assert (group["weight_decay"], group["betas"], group["initial_lr"]) == (0.1, (0.5, 0.999), 1e-3)
    rates = [run_record(tmp_path)[f"{step}.learning_rate"] for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([1e-2, 1e-2, 0.75e-3, 1e-3])


def test_the_state_says_what_the_run_was(tmp_path):
    make_trainer(tmp_path).train()
    state = read_state(tmp_path / "checkpoint-4")
    assert (state["step"], state["samples"], state["global_batch_size"], state["seed"]) == (4, 5, 2, 0)
    assert state["prediction_type"] == "sample"
    assert state["run"]["learning_rate"] == 1e-2
    parts = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    own = {"unet", "unet_ema", "training_state.json"}
    assert parts == own | {"optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"}


def test_the_final_pipeline_lies_beside_the_checkpoints_and_loads(tmp_path):
    previous = os.umask(0o027)
    try:
        trained = make_trainer(tmp_path).train()
    finally:
        os.umask(previous)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "tmp"))]
    loaded = voxdiff.Pipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config.prediction_type == "sample"
    for name, tensor in loaded.unet.state_dict().items():
        assert torch.equal(tensor, trained.unet.state_dict()[name])
    average = run_record(tmp_path)
    assert all(torch.equal(tensor, average[f"unet_ema.{name}"]) for name, tensor in loaded.unet.state_dict().items())
    assert "WaveletDiffusionPipeline" in (tmp_path / "pipeline.py").read_text()


def test_a_pipeline_is_replaced_whole_part_by_part(tmp_path):
    save_pipeline(make_pipeline(), tmp_path)
    (tmp_path / "unet" / "old.txt").write_text("old")
    (tmp_path / "README.md").write_text("mine")
    save_pipeline(make_pipeline(), tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_a_model_is_replaced_file_by_file(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for _ in range(2):
        save_model(make_unet(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert type(make_unet()).from_pretrained(tmp_path).config["block_out_channels"] == [4, 8]
