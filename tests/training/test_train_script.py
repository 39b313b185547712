import re
from dataclasses import fields

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from training_runs import (
    SCRIPT,
    TINY_COHORT,
    TINY_MODEL,
    load_script,
    make_runner,
    read_json,
    truncate,
    write_volumes,
)

import voxdiff
from voxdiff.data.cohort_files import write_cohort
from voxdiff.training import DataArguments, TrainingArguments
from voxdiff.volumes import intensity_unit


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Simulated subjects that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(monkeypatch, tmp_path, cache):
    return make_runner(monkeypatch, tmp_path, cache)


def sample(folder, **inputs):
    pipe = voxdiff.Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**inputs, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).volumes[0]


def test_from_the_cohort(run):
    out = run(*TINY_COHORT, "--validation_steps", "2", "--validation_inference_steps", "1")
    config = read_json(out / "scheduler" / "scheduler_config.json")
    assert (config["_class_name"], config["prediction_type"]) == ("DPMSolverMultistepScheduler", "sample")
    assert config["algorithm_type"] == "dpmsolver++"
    image = sample(out)
    assert image.shape == (16, 16, 16)
    assert image.header.get_zooms() == (13.0, 13.0, 13.0)
    assert (out / "validation" / "step-000002" / "volume-0001.png").exists()
    card = (out / "README.md").read_text()
    assert "simulated MR cohort" in card
    assert "3 subjects" in card
    assert "--resolution 16" in card
    assert str(out.parent) not in card
    assert ModelCard.load(out / "README.md").data.library_name == "diffusers"
    arguments = read_json(out / "run.json")
    assert arguments["data"]["num_subjects"] == 3
    assert arguments["training"]["max_train_steps"] == 2


def test_labels_and_ct_of_the_cohort(run):
    out = run(*TINY_COHORT, "--num_subjects", "1", "--image_columns", "t1,lesion")
    index = read_json(out / "model_index.json")
    assert index["output_volumes"] == {"t1": 0, "lesion": 1}
    assert index["label_volumes"] == {"lesion": 3}
    ct = run("--cohort", "ct", *TINY_COHORT[2:], "--num_subjects", "1", out="ct")
    assert intensity_unit(sample(ct)) == "HU"
    assert read_json(ct / "model_index.json")["processor"]["unit"] == "HU"


def test_from_a_plain_folder_on_its_own_grid(run, tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b/c.nii"], size=(16, 12, 8), spacing=2.5)
    out = run("--train_data_dir", tmp_path / "data", "--intensity", "minmax", *TINY_MODEL)
    image = sample(out)
    assert image.shape == (16, 12, 8)
    assert image.header.get_zooms() == (2.5, 2.5, 2.5)
    assert len(list((out / "cache").iterdir())) == 2


def test_labels_of_a_folder_with_several_contrasts(run, tmp_path):
    names = [f"P{index}/P{index}-{kind}.nii.gz" for index in range(2) for kind in ("t1", "flair")]
    write_volumes(tmp_path / "data", names)
    write_volumes(tmp_path / "data", ["P0/P0-seg.nii.gz", "P1/P1-seg.nii.gz"], high=0)
    columns = ["--image_columns", "flair,seg", "--condition_columns", "t1", "--label_columns", "seg=4"]
    shown = ["--validation_steps", "2", "--validation_inference_steps", "1"]
    out = run("--train_data_dir", tmp_path / "data", "--resolution", "16", *columns, *shown, *TINY_MODEL)
    image = sample(out, condition_volumes={"t1": tmp_path / "data" / "P0" / "P0-t1.nii.gz"})
    assert image.shape == (16, 16, 16, 2)
    assert read_json(out / "unet" / "config.json")["skip_mode"] == "concat"
    record = read_json(out / "validation" / "step-000002" / "volume-0001.json")
    assert "P1-t1.nii.gz" in str(record["conditions"])


def test_from_a_niftifolder(run, tmp_path):
    write_cohort(tmp_path / "data", 2, size=16, contrasts=("t1", "t2"))
    columns = ["--image_columns", "t1", "--condition_columns", "t2", "--low", "0", "--high", "100"]
    out = run("--train_data_dir", tmp_path / "data", *columns, *TINY_MODEL)
    processor = read_json(out / "model_index.json")["processor"]
    assert (processor["size"], processor["spacing"]) == ([16, 16, 16], [13.0, 13.0, 13.0])
    assert (processor["intensity"], processor["low"], processor["high"]) == ("percentile", 0, 100)


@pytest.mark.parametrize(
    ("prediction_type", "scheduler", "expected"),
    [
        ("flow", None, "FlowMatchEulerDiscreteScheduler"),
        ("epsilon", "wdm-ddim", "DDIMScheduler"),
        ("v_prediction", None, "DPMSolverMultistepScheduler"),
    ],
)
def test_prediction_types_in_voxel_space(run, prediction_type, scheduler, expected):
    preset = ["--scheduler", scheduler] if scheduler else []
    out = run(*TINY_COHORT, "--wavelet", "none", "--prediction_type", prediction_type, *preset)
    config = read_json(out / "scheduler" / "scheduler_config.json")
    assert config["_class_name"] == expected
    assert config.get("prediction_type", "flow") == prediction_type
    assert read_json(out / "model_index.json")["wavelet"] is None
    assert read_json(out / "unet" / "config.json")["in_channels"] == 1
    assert sample(out).shape == (16, 16, 16)


def test_the_network_is_the_one_asked_for(run):
    options = ["--skip_mode", "concat", "--band_scales", "2,.5,.5,.5,.5,.5,.5,.5"]
    out = run(*TINY_COHORT, *options)
    config = read_json(out / "unet" / "config.json")
    assert (config["block_out_channels"], config["layers_per_block"], config["norm_num_groups"]) == ([4, 8], 1, 2)
    assert config["skip_mode"] == "concat"
    assert read_json(out / "model_index.json")["band_scales"] == [2.0] + [0.5] * 7


@pytest.fixture
def pretrained(run, tmp_path):
    """A 16-bit pipeline folder with a processor of its own."""
    write_volumes(tmp_path / "first", ["a.nii.gz", "b.nii.gz"], low=-1000, high=500)
    window = ["--intensity", "window", "--low", "-1000", "--high", "500", "--resolution", "16", "--spacing", "2"]
    out = run("--train_data_dir", tmp_path / "first", *window, *TINY_MODEL, out="first_run")
    voxdiff.Pipeline.from_pretrained(out, dtype=torch.bfloat16).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_from_published_weights_with_their_processor(run, pretrained, tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz"], size=(20, 10, 16), spacing=4.0, low=-1000, high=500)
    start = ["--pretrained_model_name_or_path", pretrained]
    out = run("--train_data_dir", tmp_path / "data", *start, "--learning_rate", "1e-12", "--use_ema", "false")
    before, after = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (pretrained, out))
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(torch.allclose(before[name].float(), tensor, atol=1e-9) for name, tensor in after.items())
    assert read_json(out / "model_index.json")["processor"] == read_json(pretrained / "model_index.json")["processor"]
    (cached,) = {tuple(load_file(path)["image"].shape) for path in (out / "cache").iterdir()}
    assert cached == (1, 16, 16, 16)


def test_the_cohort_is_resampled_to_published_weights(run, tmp_path, monkeypatch):
    first = run(*TINY_COHORT, "--image_columns", "t1", out="first")
    index = read_json(first / "model_index.json")
    script, seen = load_script(), []
    monkeypatch.setattr(script.Trainer, "train", lambda self: seen.append(self) or self.pipeline)
    processor = voxdiff.VolumeProcessor.from_dict({**index["processor"], "spacing": (6.5, 6.5, 13)})
    pipe = voxdiff.Pipeline.from_pretrained(first)
    script.rebuilt(pipe, processor).save_pretrained(tmp_path / "finer")
    data = DataArguments(cohort="mr", num_subjects=1)
    dataset = data.make_dataset({"t1": processor}, tmp_path / "cache")
    assert dataset.subjects.cohort.size == 32
    assert dataset[0]["t1"].shape == (1, 16, 16, 16)
    whole = data.make_dataset({"t1": voxdiff.VolumeProcessor.from_dict(index["processor"])}, tmp_path / "cache")
    assert whole.subjects.cohort.size == 16
    assert (dataset[0]["t1"] > -0.5).float().mean() > 1.5 * (whole[0]["t1"] > -0.5).float().mean()  # closer


MISTAKES = {
    "no data": ([], "either --train_data_dir"),
    "two data": (["--cohort", "mr", "--train_data_dir", "x"], "either --train_data_dir"),
    "cohort": (["--cohort", "us"], "--cohort is 'us'; choose one of mr, ct"),
    "no folder": (["--train_data_dir", "nosuch"], "nosuch does not exist"),
    "no resolution": (["--cohort", "mr"], "--resolution is None; give one number"),
    "cuboid cohort": (["--cohort", "mr", "--resolution", "16,16,8"], "give one number"),
    "resolution": (["--cohort", "mr", "--resolution", "big"], "--resolution is 'big'; give whole numbers"),
    "two numbers": (["--cohort", "mr", "--resolution", "16,16"], "give one number above 0, or three"),
    "grid": ([*TINY_COHORT, "--resolution", "18"], "divisible by 4; give such a --resolution"),
    "contrast": ([*TINY_COHORT, "--image_columns", "pd"], "Contrast 'pd' is not known"),
    "ct volume": ([*TINY_COHORT, "--cohort", "ct", "--image_columns", "t1"], "ct cohort has no volume t1"),
    "subjects": ([*TINY_COHORT, "--num_subjects", "0"], "number of subjects is 0"),
    "split": ([*TINY_COHORT, "--split", "all"], "split is 'all'"),
    "cohort option": ([*TINY_COHORT, "--intensity", "window"], "--intensity belongs to --train_data_dir"),
    "cohort flag": ([*TINY_COHORT, "--skip_bad_files"], "--skip_bad_files belongs to --train_data_dir"),
    "file option": (["--train_data_dir", "data", "--num_subjects", "5"], "--num_subjects belongs to --cohort"),
    "name twice": ([*TINY_COHORT, "--image_columns", "t1", "--condition_columns", "t1"], "share a name"),
    "label": ([*TINY_COHORT, "--label_columns", "lesion"], "write NAME=HIGHEST"),
    "stranger label": ([*TINY_COHORT, "--label_columns", "seg=3"], "for one of t1"),
    "scales": ([*TINY_COHORT, "--band_scales", "1,2"], "give 8 positive divisors"),
    "no number": ([*TINY_COHORT, "--band_scales", "a"], "--band_scales is 'a'; give numbers"),
    "scales of nothing": ([*TINY_COHORT, "--wavelet", "none", "--band_scales", "1"], "belongs to --wavelet haar"),
    "wavelet": ([*TINY_COHORT, "--wavelet", "db4"], "wavelet is 'db4'"),
    "groups": ([*TINY_COHORT, "--norm_num_groups", "3"], "norm_num_groups"),
    "skip mode": ([*TINY_COHORT, "--skip_mode", "add"], "skip_mode is 'add'"),
    "prediction": ([*TINY_COHORT, "--prediction_type", "noise"], "--prediction_type is 'noise'"),
    "scheduler": ([*TINY_COHORT, "--scheduler", "pndm"], "'pndm' is unknown; choose one of"),
    "flow": ([*TINY_COHORT, "--scheduler", "wdm-ddpm", "--prediction_type", "flow"], "go together"),
    "diffusion": ([*TINY_COHORT, "--scheduler", "flow-matching"], "go together"),
    "steps": ([*TINY_COHORT, "--max_train_steps", "0"], "--max_train_steps is 0; give"),
    "resume": ([*TINY_COHORT, "--resume_from_checkpoint", "nosuch"], "nosuch is not a complete checkpoint"),
    "fp16": ([*TINY_COHORT, "--mixed_precision", "fp16"], "fp16 cannot be trained on cpu"),
    "hub": ([*TINY_COHORT, "--push_to_hub"], "go together"),
    "offline": ([*TINY_COHORT, "--push_to_hub", "--hub_model_id", "o/n"], "The Hub does not know you"),
    "no model": (["--cohort", "mr", "--pretrained_model_name_or_path", "nosuch"], "There is no model 'nosuch'"),
    "pretrained": (
        [*TINY_COHORT[:6], "--pretrained_model_name_or_path", "x"],
        "--resolution comes from the pretrained",
    ),
    "pretrained net": (
        ["--cohort", "mr", *TINY_MODEL, "--pretrained_model_name_or_path", "x"],
        "--block_out_channels comes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert re.fullmatch(rf"error: .*{message}.*", stop.value.code), stop.value.code
    assert list(tmp_path.iterdir()) == []


def spoil_nothing(folder):
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda data: truncate(data / "b.nii.gz"), [], r"1 of 3 subjects cannot be used \(b: .*b\.nii\.gz.*truncated"),
        (lambda data: write_volumes(data, ["d.nii.gz"], size=(8, 8, 8)), [], "different grids"),
        (lambda data: [path.unlink() for path in data.iterdir()], [], "holds no NIfTI file"),
        (spoil_nothing, ["--image_columns", "t1,t2"], "no file whose name ends with one of t1, t2"),
        (spoil_nothing, ["--split", "test"], "no folder 'test'"),
        (spoil_nothing, ["--intensity", "window", "--low", "-1000", "--high", "900"], "does not look like CT"),
        (spoil_nothing, ["--resume_from_checkpoint", "nosuch"], "nosuch is not a complete checkpoint"),
        (spoil_nothing, ["--unit", "HU"], "--unit HU belongs to a model in HU"),
        (spoil_nothing, ["--intensity", "window"], "The window is None to None; give low and high"),
        (spoil_nothing, ["--intensity", "zscore"], "intensity is 'zscore'; use one of"),
        (spoil_nothing, ["--block_out_channels", "4,4,4,4,4"], r"grid is \(16, 16, 16\), .*divisible by 32"),
        (
            lambda data: (data / "metadata.csv").write_text("t1_file_name\na.nii.gz\n"),
            [],
            "no volume image; its volumes",
        ),
    ],
)
def test_bad_data_are_one_sentence_and_write_nothing(run, tmp_path, spoil, options, message):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz", "c.nii.gz"])
    spoil(tmp_path / "data")
    with pytest.raises(SystemExit) as stop:
        run("--train_data_dir", tmp_path / "data", *TINY_MODEL, *options)
    assert re.fullmatch(f"error: .*{message}.*", stop.value.code), stop.value.code
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_bad_files_are_left_out_on_request(run, tmp_path, capsys):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz", "c.nii.gz"])
    truncate(tmp_path / "data" / "b.nii.gz")
    out = run("--train_data_dir", tmp_path / "data", *TINY_MODEL, "--skip_bad_files")
    assert re.search(r"left out: b: .*b\.nii\.gz.*\n2 subjects", capsys.readouterr().out)
    assert "2 subjects of the folder `data`" in (out / "README.md").read_text()


def test_an_output_folder_among_the_data_or_in_use_is_refused(run, tmp_path):
    write_volumes(tmp_path / "data", ["a.nii.gz"])
    with pytest.raises(SystemExit, match="lies inside the training data"):
        run("--train_data_dir", tmp_path / "data", *TINY_MODEL, out="data/out")
    out = run(*TINY_COHORT)
    with pytest.raises(SystemExit, match="holds checkpoint-2 of an earlier run"):
        run(*TINY_COHORT)
    before = (out / "run.json").read_text()
    with pytest.raises(SystemExit, match="trained with in_channels 8, this run has 1"):
        run(*TINY_COHORT, "--wavelet", "none", "--resume_from_checkpoint", "latest")
    assert (out / "run.json").read_text() == before


def test_every_option_is_read_by_something():
    source = "".join(path.read_text() for path in [SCRIPT, *(SCRIPT.parents[1] / "src/voxdiff").rglob("training/*.py")])
    card = (SCRIPT.parents[1] / "src/voxdiff/hub/training_card.py").read_text()
    for kind in (DataArguments, TrainingArguments, load_script().ModelArguments):
        for field in fields(kind):
            read = rf"(self|args|data|model|training)\.{field.name}\b|args\[\"{field.name}\"\]"
            assert re.search(read, source + card), f"nothing reads --{field.name}"
