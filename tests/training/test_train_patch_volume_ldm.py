import json
import re
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import training_runs
from huggingface_hub import ModelCard
from latent_training_runs import (
    ANY_AUTOENCODER,
    SCRIPT,
    TINY_BIFLOWNET,
    TINY_UNET,
    launch_ldm,
    run_ldm,
    save_autoencoder,
)
from training_runs import assert_same_run, finish, read_json, write_volumes

import voxdiff
from voxdiff.pipelines.patch_volume_classes import read_classes
from voxdiff.training.latent_model_arguments import LatentModelArguments
from voxdiff.training.source_arguments import SourceArguments
from voxdiff.volumes import VolumeProcessor, intensity_unit

COHORT = ["--cohort", "mr,ct", "--num_subjects", "3", "--grids", "24;24,24,16"]
ONE_GRID = ["--num_subjects", "2", "--grids", "16"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Simulated subjects that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def run(monkeypatch, tmp_path, cache, vae):
    """Runs the script and returns its output folder."""

    def call(*arguments, out="out", vae=vae, network=TINY_BIFLOWNET):
        start = [] if "--pretrained_model_name_or_path" in arguments else ["--vae", vae, *network]
        kept = ["--cache_dir", cache] if "--cohort" in arguments else []
        run_ldm(monkeypatch, tmp_path / out, *start, *kept, *arguments)
        return tmp_path / out

    return call


def sample(folder, *label, **inputs):
    pipe = voxdiff.Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe(*label, **inputs, num_inference_steps=1, generator=torch.Generator().manual_seed(0)).volumes[0]


def test_classes_grids_and_scalars_of_the_cohort(run, capsys):
    conditions = ["--scalar_columns", "ventricle_volume_ml", "--label_dropout", "0.2", "--scalar_dropout", "0.1"]
    shown = ["--validation_steps", "2", "--validation_inference_steps", "1", "--num_validation_volumes", "1"]
    out = run(*COHORT, *conditions, *shown, ANY_AUTOENCODER)
    printed = capsys.readouterr().out
    assert "12 latents on 2 grid(s) of 6, 6" in printed
    assert re.search(r"autoencoder: PSNR .* on 12 volumes\. Its PSNR of", printed)
    classes = read_json(out / "model_index.json")["classes"]
    assert {name: (entry["id"], entry["size"]) for name, entry in classes.items()} == {
        "mr": (0, [24, 24, 24]),
        "ct": (1, [24, 24, 24]),
    }
    assert (list(classes["mr"]["scalars"]), classes["ct"]["scalars"]) == (["ventricle_volume_ml"], {})
    config = read_json(out / "unet" / "config.json")
    assert (config["num_class_embeds"], config["axis_order"]) == (2, "xyz")
    assert (config["null_condition"], config["optional_scalars"]) == (True, True)
    assert list(config["scalar_conditions"]) == ["ventricle_volume_ml"]
    image = sample(out, "ct", size=(24, 24, 16), guidance_scale=2.0)
    assert (image.shape, intensity_unit(image)) == ((24, 24, 16), "HU")
    assert sample(out, "mr", scalars={"ventricle_volume_ml": 30.0}).shape == (24, 24, 24)
    records = [read_json(path) for path in sorted((out / "validation" / "step-000002").glob("*.json"))]
    assert [record["conditions"]["class"] for record in records] == ["mr", "ct"]
    assert (out / "cache" / "latents" / "autoencoder_report.png").exists()
    card = (out / "README.md").read_text()
    assert ModelCard.load(out / "README.md").data.library_name == "diffusers"
    for text in ("Class 1, `ct`: Grid 24 x 24 x 24, 16 x 16 x 16 mm", "simulated cohort (mr,ct)", "24 x 24 x 16"):
        assert text in card
    assert 'pipe("mr", scalars={"ventricle_volume_ml"' in card
    assert str(out.parent) not in card


def test_label_dropout_alone_samples_and_shows_whole_conditions(run):
    conditions = ["--scalar_columns", "csf_ml,ventricle_volume_ml", "--label_dropout", "0.2"]
    shown = ["--validation_steps", "2", "--validation_inference_steps", "1"]
    out = run("--cohort", "t1,t2", *ONE_GRID, *conditions, *shown, ANY_AUTOENCODER)
    config = read_json(out / "unet" / "config.json")
    assert (config["null_condition"], config["optional_scalars"]) == (True, False)
    for path in (out / "validation" / "step-000002").glob("*.json"):
        means = {name: pytest.approx(entry["mean"]) for name, entry in config["scalar_conditions"].items()}
        assert read_json(path)["conditions"]["scalars"] == means
    card = (out / "README.md").read_text()
    assert re.search(r'pipe\("t1", scalars=\{"csf_ml": .*, "ventricle_volume_ml": .*\}, ', card)
    assert "Scalars: give all of them" in card
    start = ["--pretrained_model_name_or_path", out, "--cohort", "t1,t2", *ONE_GRID, ANY_AUTOENCODER]
    with pytest.raises(SystemExit, match="another order than the data; give --scalar_columns csf_ml,ventricle_volume"):
        run(*start, "--scalar_columns", "ventricle_volume_ml,csf_ml", out="other")
    with pytest.raises(SystemExit, match="trained without --scalar_dropout"):
        run(*start, *conditions, "--scalar_dropout", "0.1", out="other")


def test_a_resumed_run_is_the_run_never_interrupted(run):
    options = [*COHORT, "--label_dropout", "0.5", ANY_AUTOENCODER, "--checkpointing_steps", "2"]
    whole = run(*options, "--max_train_steps", "4", out="whole")
    half = run(*options, "--max_train_steps", "2", out="half")
    run(*options, "--max_train_steps", "4", "--resume_from_checkpoint", "latest", out="half")
    assert_same_run(whole, half)


def test_latents_of_an_earlier_run_need_no_data(run, tmp_path, cache):
    latents = ["--latents_dir", tmp_path / "latents"]
    first = run(*COHORT, *latents, ANY_AUTOENCODER, out="first")
    with pytest.raises(SystemExit, match="not fit for diffusion"):
        run(*latents, out="second")
    second = run(*latents, ANY_AUTOENCODER, out="second")
    assert_same_run(first, second, checkpoint="checkpoint-2")
    assert not (first / "cache").exists()
    with pytest.raises(SystemExit, match="were made by another autoencoder"):
        run(*latents, vae=save_autoencoder(tmp_path / "kl", kl=True), out="third")
    next((tmp_path / "latents").glob("*.safetensors")).unlink()
    with pytest.raises(SystemExit, match="lacks 1 of 12 latents"):
        run(*latents, ANY_AUTOENCODER, out="third")


def test_grids_of_another_spacing_get_an_entry_of_their_own(run, capsys):
    grids = ["--cohort", "mr,ct", "--num_subjects", "2", "--grids", "mr=24;mr=16;ct=24,24,16", ANY_AUTOENCODER]
    out = run(*grids)
    classes = read_json(out / "model_index.json")["classes"]
    assert {name: entry["id"] for name, entry in classes.items()} == {"mr": 0, "mr-16x16x16": 0, "ct": 1}
    image = sample(out, "mr-16x16x16")
    assert (image.shape, image.header.get_zooms()) == ((16, 16, 16), (13.0, 13.0, 13.0))
    run(*grids, "--pretrained_model_name_or_path", out, out="same")
    assert "class table" not in capsys.readouterr().out


def test_each_class_of_files_has_its_own_spacing(run, tmp_path):
    write_volumes(tmp_path / "data", ["a0.nii.gz", "a1.nii.gz"], spacing=6.0)
    write_volumes(tmp_path / "data", ["b0.nii.gz", "b1.nii.gz"], spacing=4.0)
    rows = "".join(f"{name}{place}.nii.gz,{name}\n" for name in "ab" for place in (0, 1))
    (tmp_path / "data" / "metadata.csv").write_text(f"image_file_name,kind\n{rows}")
    options = ["--train_data_dir", tmp_path / "data", "--class_column", "kind", "--grids", "16", ANY_AUTOENCODER]
    out = run(*options)
    assert [sample(out, name).header.get_zooms() for name in "ab"] == [(6.0, 6.0, 6.0), (4.0, 4.0, 4.0)]
    write_volumes(tmp_path / "data", ["b1.nii.gz"], spacing=3.0)
    with pytest.raises(SystemExit, match="of the class b have different voxel sizes; give --spacing"):
        run(*options, out="other")


def test_a_class_without_a_setting_of_the_first_class_says_so(monkeypatch):
    monkeypatch.setattr(training_runs, "SCRIPT", SCRIPT)
    first = VolumeProcessor(size=(16, 16, 16), spacing=(6, 6, 6), intensity="minmax", background=0)
    second = VolumeProcessor(size=(16, 16, 16), intensity="minmax")
    latents = SimpleNamespace(processors=[("a", first), ("b", second)], classes={"a": 0, "b": 1}, scalar_names=[])
    table = read_classes(training_runs.load_script().class_table(latents), first, 2)
    assert [table[name].processor for name in "ab"] == [first, second]


@pytest.mark.parametrize(("kl", "prediction"), [(True, "epsilon"), (False, "flow")])
def test_the_plain_ldm_of_files(run, tmp_path, kl, prediction):
    write_volumes(tmp_path / "data", ["a.nii.gz", "b.nii.gz"])
    options = ["--train_data_dir", tmp_path / "data", "--intensity", "minmax", "--prediction_type", prediction]
    vae = save_autoencoder(tmp_path / "vae", kl=kl)
    out = run(*options, ANY_AUTOENCODER, vae=vae, network=TINY_UNET)
    index = read_json(out / "model_index.json")
    assert (index["classes"], index["clip_latents"]) == (None, not kl)
    assert index["vae"][1] == ("AutoencoderKL3D" if kl else "AutoencoderPatchVolume")
    assert sample(out).header.get_zooms() == (3.0, 3.0, 3.0)
    assert "the folder `data`" in (out / "README.md").read_text()


def test_fine_tuning_keeps_the_rows_of_known_classes_and_all_other_weights(run, capsys):
    known = ["--cohort", "mr,ct", *ONE_GRID]
    first = run(*known, ANY_AUTOENCODER, out="first")
    start = ["--pretrained_model_name_or_path", first, "--learning_rate", "1e-12", "--use_ema", "false"]
    same = run(*known, *start, ANY_AUTOENCODER, out="same")
    assert "class table" not in capsys.readouterr().out
    other = run("--cohort", "ct,t1", *ONE_GRID, *start, ANY_AUTOENCODER, out="other")
    assert "class table: ct kept, t1 new" in capsys.readouterr().out
    before, kept, changed = (
        voxdiff.BiFlowNet3DModel.from_pretrained(folder / "unet") for folder in (first, same, other)
    )
    assert torch.allclose(before.class_embedding.weight, kept.class_embedding.weight, atol=1e-9)
    assert torch.allclose(before.class_embedding.weight[1], changed.class_embedding.weight[0], atol=1e-9)
    assert not torch.isclose(before.class_embedding.weight, changed.class_embedding.weight[1]).any()
    assert torch.allclose(before.conv_in.weight, changed.conv_in.weight, atol=1e-9)
    assert set(read_json(other / "model_index.json")["classes"]) == {"t1", "ct"}
    with pytest.raises(SystemExit, match="was trained without --label_dropout"):
        run(*known, *start, ANY_AUTOENCODER, "--label_dropout", "0.1", out="third")
    with pytest.raises(SystemExit, match=r"has classes and the scalars .* the data have no classes"):
        run("--cohort", "t1", *ONE_GRID, *start, ANY_AUTOENCODER, out="third")


def test_a_broken_autoencoder_is_refused_and_its_report_kept(run):
    with pytest.raises(SystemExit, match=r"not fit for diffusion: Its PSNR .* pass --ignore_autoencoder_report"):
        run("--cohort", "mr", *ONE_GRID)
    out = run("--cohort", "mr", *ONE_GRID, ANY_AUTOENCODER)
    assert read_json(out / "cache" / "latents" / "autoencoder_report.json")["volumes"] == 2


MISTAKES = {
    "no data": ([], "Give the training data"),
    "grid of the autoencoder": ([*COHORT, "--grids", "20"], "use 16 or 24 along x"),
    "grid of the network": ([*COHORT, "--sub_volume_size", "8"], "must be divisible by 16"),
    "batch": ([*COHORT, "--train_batch_size", "7"], "has 6 volumes, fewer than a batch of 7"),
    "absent scalar": (
        [*COHORT, "--scalar_columns", "liver_ml", "--label_dropout", "0.1"],
        "lack a scalar, .* give --scalar_dropout",
    ),
    "levels": ([*COHORT, "--attention_levels", "2"], "give numbers from 0 to 1"),
    "flow": ([*COHORT, "--prediction_type", "flow", "--scheduler", "med-ddpm"], "go together"),
    "loss": ([*COHORT, "--loss_type", "huber"], "--loss_type is 'huber'"),
    "dropout": ([*COHORT, "--label_dropout", "1"], "--label_dropout is 1.0"),
    "useless dropout": (
        ["--cohort", "mr", *COHORT[2:], "--label_dropout", "0.1"],
        "--label_dropout drops conditions, and there is none",
    ),
    "useless scalar dropout": (
        [*COHORT, "--scalar_dropout", "0.1"],
        "--scalar_dropout drops scalars, and there is none",
    ),
    "layers": ([*COHORT, "--layers_per_block", "2"], "--layers_per_block belongs to --unet unet3d"),
    "latents": (["--latents_dir", "nosuch"], "has no manifest.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert re.fullmatch(rf"error: .*{message}.*", stop.value.code), stop.value.code
    assert list(tmp_path.iterdir()) == []


def test_the_unet_refuses_conditions_and_a_wrong_folder_is_no_autoencoder(run, tmp_path):
    with pytest.raises(SystemExit, match="--unet unet3d has no conditions"):
        run(*COHORT, network=TINY_UNET)
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        run(*COHORT, vae=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet"}))
    with pytest.raises(SystemExit, match="holds a UNet; give one of AutoencoderPatchVolume"):
        run(*COHORT, vae=tmp_path)


def test_every_option_is_read_by_something():
    source = "".join(path.read_text() for path in [SCRIPT, *(SCRIPT.parents[1] / "src/voxdiff").rglob("training/*.py")])
    for kind in (SourceArguments, LatentModelArguments):
        for field in fields(kind):
            read = rf"(self|data|model)\.{field.name}\b|\"{field.name}\""
            assert re.search(read, source), f"nothing reads --{field.name}"


@pytest.mark.slow
def test_two_processes_are_one(monkeypatch, tmp_path, cache, vae):
    options = ["--vae", vae, *TINY_BIFLOWNET, *COHORT, "--cache_dir", cache, ANY_AUTOENCODER, "--label_dropout", "0.3"]
    options += ["--max_train_steps", "6", "--checkpointing_steps", "3", "--adam_epsilon", "1e-4"]

    def start(out, batch, processes):
        arguments = [*options, "--output_dir", tmp_path / out, "--train_batch_size", batch]
        return finish(launch_ldm(monkeypatch, *arguments, processes=processes))

    assert "1 process(es)" in start("one", 4, 1)
    printed = start("two", 2, 2)
    assert "2 process(es)" in printed
    assert printed.count("autoencoder: PSNR") == 1
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=1e-6, checkpoint="checkpoint-6")
