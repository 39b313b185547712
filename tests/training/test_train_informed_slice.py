import json
import re
from dataclasses import fields

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from informed_slice_runs import (
    COHORT,
    SCRIPT,
    STAGES,
    TINY_UNET,
    TINY_VAE,
    assert_same_run,
    launch,
    run_stage,
)
from training_runs import finish, read_json, run_script

import voxdiff
from voxdiff.training.informed_slice_arguments import InformedSliceArguments
from voxdiff.training.slice_autoencoder_arguments import SliceAutoencoderArguments


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Simulated subjects that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def vae(tmp_path_factory, cache):
    return run_stage(tmp_path_factory.mktemp("stages"), cache, "autoencoder")


@pytest.fixture(scope="module")
def slice_stage(tmp_path_factory, cache, vae):
    return run_stage(tmp_path_factory.mktemp("stages"), cache, "slice", vae=vae)


@pytest.fixture(scope="module")
def generator(tmp_path_factory, cache, vae):
    return run_stage(tmp_path_factory.mktemp("stages"), cache, "generator", vae=vae)


@pytest.fixture
def run(tmp_path, cache, vae):
    """Runs a stage and returns its output folder."""

    def call(stage, *arguments, **options):
        return run_stage(tmp_path, cache, stage, *arguments, **{"vae": vae, **options})

    return call


def mask():
    labels = torch.full((16, 16, 16), 4)
    labels[:2], labels[6:9, 6:9, 6:9] = 0, 3
    return labels


def test_the_autoencoder_has_the_scale_of_its_latents_and_reports_on_masks_too(vae):
    trained = AutoencoderKL.from_pretrained(vae)
    image, masks = (read_json(vae / folder / "autoencoder_report.json") for folder in (".", "masks"))
    assert trained.config["scaling_factor"] == pytest.approx(1 / image["latent_std"])
    assert (image["volumes"], masks["volumes"], image["compression"]) == (1, 1, [2, 2, 1])
    assert image["psnr"] != masks["psnr"]
    assert (vae / "masks" / "autoencoder_report.png").exists()
    line = json.loads((vae / "training_log.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(line["l1"] + 1e-6 * line["kl"] + 0.5 * line["perceptual"], abs=1e-5)


def test_stages_leave_diffusers_networks_with_their_diffusion(slice_stage, generator):
    unet, slice_unet = UNet2DModel.from_pretrained(slice_stage), UNet2DConditionModel.from_pretrained(generator)
    assert (unet.config["in_channels"], slice_unet.config["cross_attention_dim"]) == (6, 8)
    for folder in (slice_stage, generator):
        assert read_json(folder / "scheduler" / "scheduler_config.json")["prediction_type"] == "epsilon"


def test_the_volume_stage_learns_what_is_between_the_slices_and_makes_a_pipeline(run, slice_stage, generator):
    shown = ["--validation_steps", "2", "--validation_inference_steps", "1", "--num_validation_volumes", "1"]
    out = run("volume", "--known_slice_indicator", "--slice_model", generator, *shown, start=slice_stage)
    pipe = voxdiff.Pipeline.from_pretrained(out)
    assert type(pipe).__name__ == "InformedSlicePipeline"
    before, after = UNet2DModel.from_pretrained(slice_stage).state_dict(), pipe.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after["conv_in_known.weight"].any()
    assert (pipe.unet.config["window"], pipe.unet.config["known_slice_indicator"]) == (4, True)
    assert pipe.mask_encoder.values == {0: -1.0, 1: 0.5, 2: 0.0, 3: 1.0, 4: -0.5}
    pipe.set_progress_bar_config(disable=True)
    image = pipe(mask(), num_inference_steps=1, generator=torch.Generator().manual_seed(0)).volumes[0]
    assert image.shape == (16, 16, 16)
    assert (out / "validation" / "step-000002" / "volume-0000.png").exists()
    card = (out / "README.md").read_text()
    for text in ("Informed slice: given or generated", "4 (-0.5)", "Windows of 4", "flair with masks of tumours"):
        assert text in card
    again = run("volume", "--known_slice_indicator", "--learning_rate", "1e-12", start=out, out="again")
    assert read_json(again / "model_index.json")["slice_unet"] == [None, None]
    kept = voxdiff.Pipeline.from_pretrained(again).unet.state_dict()
    assert all(torch.allclose(kept[name], tensor, atol=1e-9) for name, tensor in after.items())
    with pytest.raises(SystemExit, match=r"known_slice_indicator True; give --known_slice_indicator"):
        run("volume", start=out, out="other")


def test_all_weights_learn_if_asked(run, slice_stage):
    out = run("volume", "--train_spatial", "--learning_rate", "1e-2", start=slice_stage)
    before = UNet2DModel.from_pretrained(slice_stage).state_dict()
    after = voxdiff.InformedSliceUNetModel.from_pretrained(out / "unet").state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in ("conv_in.weight", "conv_out.weight"))


def test_make_a_volume_is_the_same_script_without_informed_slices(run, slice_stage):
    without = ["--informed_slice", "none"]
    first = run("slice", *without, out="baseline")
    pipe = voxdiff.Pipeline.from_pretrained(run("volume", *without, start=first))
    assert pipe.unet.config["in_channels"] == 4
    pipe.set_progress_bar_config(disable=True)
    assert pipe(mask(), num_inference_steps=1).volumes[0].shape == (16, 16, 16)
    with pytest.raises(SystemExit, match="has 6 input and 2 output channels, this stage needs 4 and 2"):
        run("volume", *without, start=slice_stage, out="other")


@pytest.mark.parametrize("stage", ["autoencoder", "slice", "volume", "generator"])
def test_a_resumed_run_is_the_run_never_interrupted(run, slice_stage, stage):
    start = slice_stage if stage == "volume" else None
    options = ["--known_slice_indicator"] if stage == "volume" else []
    options += ["--checkpointing_steps", "2", "--learning_rate", "1e-2"]
    where = {"vae": None} if stage == "autoencoder" else {}
    whole = run(stage, *options, "--max_train_steps", "4", out="whole", start=start, **where)
    half = run(stage, *options, "--max_train_steps", "2", out="half", start=start, **where)
    last = ["--max_train_steps", "4", "--resume_from_checkpoint", "latest"]
    run(stage, *options, *last, out="half", start=start, **where)
    assert_same_run(whole, half)
    if stage == "slice":
        with pytest.raises(SystemExit, match="was trained with --window 4, this run has 3"):
            run(stage, *options, *last, "--window", "3", out="half")


def test_latents_of_an_earlier_run_are_enough(run, tmp_path):
    latents = ["--latents_dir", tmp_path / "latents"]
    first = run("slice", *latents, out="first")
    second = run("slice", data=latents, out="second")
    assert_same_run(first, second, step=2)
    with pytest.raises(SystemExit, match="--validation_steps needs masks to show"):
        run("volume", "--validation_steps", "1", start=first, data=latents, out="third")
    next((tmp_path / "latents").glob("*.safetensors")).unlink()
    with pytest.raises(SystemExit, match="lacks 1 of 3 latents"):
        run("slice", data=latents, out="third")


def test_a_broken_autoencoder_is_refused(tmp_path, cache, vae):
    arguments = ["--stage", "slice", *TINY_UNET, *COHORT, "--cache_dir", cache, "--vae", vae]
    with pytest.raises(SystemExit, match=r"not fit for diffusion: On images: Its PSNR .* pass --ignore_autoencoder"):
        run_script(pytest.MonkeyPatch(), tmp_path / "out", *arguments, script=SCRIPT)


MISTAKES = {
    "stage": (["--stage", "all"], "--stage is 'all'; choose one of autoencoder, slice, volume, generator"),
    "no stage": ([], "--stage is None"),
    "no autoencoder": (["--stage", "slice"], "give --vae FOLDER"),
    "no data": (["--stage", "autoencoder", "--cohort", "none"], "--cohort is 'none'"),
    "latents": (["--stage", "autoencoder", "--latents_dir", "x"], "--latents_dir belongs to the stages after"),
    "other stage": (["--stage", "autoencoder", "--window", "4"], "--window belongs to --stage slice or volume"),
    "other losses": (["--stage", "slice", "--vae", "x", "--kl_weight", "1"], "--kl_weight belongs to --stage autoenc"),
    "layout": (["--stage", "autoencoder", "--channels_last", "true"], "--channels_last is a layout of 3D networks"),
    "pictures": (["--stage", "slice", "--vae", "x", "--validation_steps", "1"], "--stage slice has no volumes to show"),
    "half a pipeline": (
        ["--stage", "slice", "--vae", "x", "--push_to_hub", "--hub_model_id", "a/b"],
        "Only a whole pipeline is published",
    ),
    "held out": (["--stage", "autoencoder", "--num_held_out", "3"], "There are 3 subjects, and 3 are held out"),
    "batch": (
        ["--stage", "autoencoder", *TINY_VAE, "--train_batch_size", "3"],
        "There are 2 volumes to train on, fewer than a batch of 3",
    ),
    "missing autoencoder": (["--stage", "slice", "--vae", "nosuch"], "--vae nosuch holds no trained vae"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, cache, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    data = [] if "--cohort" in arguments else COHORT
    with pytest.raises(SystemExit) as stop:
        run_script(monkeypatch, tmp_path / "out", *arguments, *data, "--cache_dir", cache, script=SCRIPT)
    assert re.fullmatch(rf"error: .*{message}.*", stop.value.code), stop.value.code
    assert list(tmp_path.iterdir()) == []


def test_networks_that_do_not_fit_the_volumes_are_refused(run, generator):
    with pytest.raises(SystemExit, match="have 16 slices, fewer than a window of 17; lower --window"):
        run("slice", "--window", "17")
    with pytest.raises(SystemExit, match=r"x and y must be divisible by 32 .* use 32 along x"):
        run("slice", "--block_out_channels", "4,4,4,4,4")
    with pytest.raises(SystemExit, match="holds a UNet2DConditionModel; give a folder with UNet2DModel or Informed"):
        run("volume", start=generator)


def test_every_option_is_read_by_something():
    source = "".join(path.read_text() for path in [SCRIPT, *(SCRIPT.parents[1] / "src/voxdiff").rglob("training/*.py")])
    for kind in (InformedSliceArguments, SliceAutoencoderArguments):
        for field in fields(kind):
            read = rf"(self|model|autoencoder)\.{field.name}\b|\"{field.name}\""
            assert len(re.findall(read, source)) > 0, f"nothing reads --{field.name}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "slice", "volume", "generator"])
def test_two_processes_are_one(monkeypatch, tmp_path, cache, vae, slice_stage, stage):
    options = ["--stage", stage, *STAGES[stage], *COHORT, "--num_subjects", "5", "--cache_dir", cache]
    options += ["--max_train_steps", "4", "--adam_epsilon", "1e-4"]
    options += [] if stage == "autoencoder" else ["--vae", vae]
    options += ["--pretrained_model_name_or_path", slice_stage] if stage == "volume" else []

    def start(out, batch, processes):
        arguments = [*options, "--output_dir", tmp_path / out, "--train_batch_size", batch]
        return finish(launch(monkeypatch, *arguments, processes=processes))

    assert "1 process(es)" in start("one", 4, 1)
    assert "2 process(es)" in start("two", 2, 2)
    # The autoencoder amplifies the rounding of half a batch, at most 2.7e-6 (AMD) in moments of up to 0.012.
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=1e-5 if stage == "autoencoder" else 1e-6)
