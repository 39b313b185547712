import re

import pytest
import torch
from slice_conditioned_runs import SCRIPT, TINY_COHORT, TINY_MODEL, launch
from training_runs import assert_same_run, finish, make_runner, read_json, write_volumes

import voxdiff
from voxdiff.training.slice_index_sampler import SliceIndexSampler

NEW = ["--patch_size", "2", "--slice_convolution", "--interpolate_known", "--pre_norm_residual"]
NEW += ["--gap_share", "0.3", "--comb_share", "0.3", "--observed_share", "0.7"]
"""What the published network and FDM's draws have not."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Simulated subjects that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(monkeypatch, tmp_path, cache):
    return make_runner(monkeypatch, tmp_path, cache, script=SCRIPT)


def sample(folder, **inputs):
    pipe = voxdiff.Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**inputs, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).volumes[0]


def test_from_the_cohort(run):
    shown = ["--validation_steps", "2", "--validation_inference_steps", "1", "--num_validation_volumes", "1"]
    out = run(*TINY_COHORT, *NEW, *shown)
    index, config = (read_json(out / name) for name in ("model_index.json", "unet/config.json"))
    assert index["_class_name"] == "SliceConditionedPipeline"
    assert (index["slice_axis"], index["stage_size"], index["max_slices"]) == (2, 3, 6)
    assert (config["position_embedding"], config["position_scale"]) == ("relative+absolute", 15.0)
    scheduler = read_json(out / "scheduler" / "scheduler_config.json")
    assert (scheduler["_class_name"], scheduler["prediction_type"]) == ("DPMSolverMultistepScheduler", "epsilon")
    image = sample(out)
    assert image.shape == (16, 16, 16)
    assert image.header.get_zooms() == (13.0, 13.0, 13.0)
    assert (out / "validation" / "step-000002" / "volume-0000.png").exists()
    card = (out / "README.md").read_text()
    assert (config["slice_convolution"], config["patch_size"]) == (True, 2)
    for text in ("Makes axial slices", "Scheme: hierarchical, 3 slices a stage", "relative+absolute", "simulated MR"):
        assert text in card
    assert read_json(out / "run.json")["model"]["max_slices"] == 6


def test_files_on_their_own_grid_along_another_axis_and_again_from_there(run, tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz", "c.nii.gz"], size=(7, 12, 8), spacing=2.5)
    data = ["--train_data_dir", tmp_path / "data", "--train_batch_size", "2"]
    first = run(*data, "--slice_axis", "0", "--prediction_type", "v_prediction", *TINY_MODEL, out="first")
    assert read_json(first / "unet" / "config.json")["position_scale"] == 6.0
    assert "Makes sagittal slices" in (first / "README.md").read_text()
    image = sample(first)
    assert (image.shape, image.header.get_zooms()) == ((7, 12, 8), (2.5, 2.5, 2.5))
    second = run(*data, "--pretrained_model_name_or_path", first, "--learning_rate", "1e-12", out="second")
    before, after = (voxdiff.Pipeline.from_pretrained(folder) for folder in (first, second))
    assert after.config["slice_axis"] == 0
    assert after.scheduler.config["prediction_type"] == "v_prediction"
    weights = after.unet.state_dict()
    assert all(torch.allclose(weights[name], tensor, atol=1e-9) for name, tensor in before.unet.state_dict().items())


def test_all_weights_learn(run):
    out = run(*TINY_COHORT, "--max_train_steps", "6", "--checkpointing_steps", "3", "--learning_rate", "1e-2")
    first, last = (
        voxdiff.SliceConditionedUNetModel.from_pretrained(out / f"checkpoint-{step}" / "unet").state_dict()
        for step in (3, 6)
    )
    assert not [name for name, tensor in last.items() if torch.equal(tensor, first[name])]


def test_a_resumed_run_is_the_run_never_interrupted(run):
    options = [*TINY_COHORT, *NEW, "--checkpointing_steps", "2", "--learning_rate", "1e-2"]
    whole = run(*options, "--max_train_steps", "4", out="whole")
    run(*options, "--max_train_steps", "2", out="half")
    last = ["--max_train_steps", "4", "--resume_from_checkpoint", "latest"]
    half = run(*options, *last, out="half")
    assert_same_run(whole, half)
    with pytest.raises(SystemExit, match="was trained with stage_size 3, this run has 2; use the same"):
        run(*options, *last, "--max_slices", "5", out="half")


def test_a_run_resumed_with_other_shares_says_so(run, capsys):
    run(*TINY_COHORT, "--gap_share", "0.5", "--max_train_steps", "1")
    run(*TINY_COHORT, "--comb_share", "0.25", "--max_train_steps", "2", "--resume_from_checkpoint", "latest")
    assert "resumed with other settings: gap_share 0.5, now 0.0; comb_share 0.0, now 0.25\n" in capsys.readouterr().out


MISTAKES = {
    "no data": (TINY_MODEL, "Give the training data as either --train_data_dir"),
    "conditions": (
        [*TINY_COHORT, "--condition_columns", "t2"],
        "--condition_columns belongs to wavelet diffusion",
    ),
    "volumes": ([*TINY_COHORT, "--image_columns", "t1,t2"], "'t1,t2'; name one volume, whose slices are learnt"),
    "layout": ([*TINY_COHORT, "--channels_last", "true"], "--channels_last is a layout of 3D networks"),
    "axis": ([*TINY_COHORT, "--slice_axis", "3"], "--slice_axis is 3; choose one of 0, 1, 2"),
    "grid": ([*TINY_COHORT, "--block_out_channels", "4,4,4,4,4,4"], "sides of a slice divisible by 32"),
    "model": (
        ["--cohort", "mr", "--pretrained_model_name_or_path", "nosuch", "--resolution", "16"],
        "--resolution comes from the pretrained model",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert re.fullmatch(rf"error: .*{message}.*", stop.value.code), stop.value.code
    assert list(tmp_path.iterdir()) == []


def test_the_shares_decide_what_a_step_learns(run, monkeypatch):
    seen = []
    original = SliceIndexSampler.__init__

    def spy(self, *sizes, **settings):
        seen.append(settings)
        original(self, *sizes, **settings)

    monkeypatch.setattr(SliceIndexSampler, "__init__", spy)
    shares = {"observed_share": 0.7, "gap_share": 0.3, "comb_share": 0.2}
    run(*TINY_COHORT, "--max_train_steps", "1", *(word for name in shares for word in (f"--{name}", str(shares[name]))))
    assert {name: seen[0][name] for name in shares} == shares


@pytest.mark.slow
def test_two_processes_are_one(monkeypatch, tmp_path, cache):
    options = [*TINY_COHORT, *NEW, "--num_subjects", "5", "--cache_dir", cache]
    options += ["--max_train_steps", "4", "--logging_steps", "1", "--adam_epsilon", "1e-4"]

    def start(out, batch, processes):
        arguments = [*options, "--output_dir", tmp_path / out, "--train_batch_size", batch]
        return finish(launch(monkeypatch, *arguments, processes=processes))

    assert "1 process(es)" in start("one", 4, 1)
    assert "2 process(es)" in start("two", 2, 2)
    # Within 1e-6, beside one unit of the log's last digit
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=2e-6)
