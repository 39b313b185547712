import inspect
import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from autoencoders import make_autoencoder, make_kl_autoencoder
from biflownets import make_biflownet
from conftest import make_processor, make_unet
from goldens import load_golden
from patch_volume_components import (
    CHANNELS,
    CLASSES,
    make_guided_pipeline,
    make_patch_volume_pipeline,
    make_plain_pipeline,
    make_scalar_pipeline,
)

import voxdiff
from voxdiff import PatchVolumeLDMPipeline, Pipeline, convert_state_dict
from voxdiff.models.axis_order import to_network
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, make_scheduler, swap_scheduler
from voxdiff.schedulers.presets import cosine_betas
from voxdiff.volumes import intensity_unit

DIFFUSION_SCHEDULERS = [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"]
SCALARS = {"age": 40.0, "volume": 2.5}


@pytest.fixture
def pipe():
    return make_patch_volume_pipeline()


@pytest.fixture
def guided():
    return make_guided_pipeline()


@pytest.fixture
def plain():
    return make_plain_pipeline()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(pipe, *labels, **arguments):
    return pipe(*labels, **{"num_inference_steps": 3, "output_type": "pt", "generator": seeded(0), **arguments}).volumes


def noise(*shape):
    return torch.randn(shape, generator=seeded(1))


def difference(first, second):
    return (first - second).abs().max()


# --- the published sampler -------------------------------------------------------------------------------------------


def test_published_ancestral_chain(monkeypatch):
    """Eight steps of the official sampler, x0 clipped by the pipeline alone and by the scheduler as well."""
    meta, state, inputs, outputs = load_golden("med_sampling")
    unet = convert_state_dict("med-biflownet", state, norm_num_groups=6, num_dit_heads=4, axis_order="xyz")
    steps = meta["config"]["short_steps"]
    conditions = {"class_labels": torch.tensor(meta["config"]["labels"])}
    for clip_sample in (False, True):
        pipe = make_patch_volume_pipeline(unet=unet, classes=None)
        schedule = {"num_train_timesteps": steps, "trained_betas": cosine_betas(steps), "clip_sample": clip_sample}
        pipe.scheduler = make_scheduler("med-ddpm", **schedule)
        pipe.scheduler.set_timesteps(steps)
        draws = [inputs[f"ddpm.noise{step}"] for step in range(steps)]
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, draws=draws, **__: draws.pop(0)
        )
        with torch.no_grad():
            latents = pipe.denoise(inputs["x"], conditions, 1.0, None)
        torch.testing.assert_close(latents, outputs["ddpm"], atol=meta["atol"], rtol=0)


# --- seeds and samplers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFUSION_SCHEDULERS)
def test_each_sample_depends_on_its_own_generator_and_conditions_only(guided, name):
    guided.scheduler = swap_scheduler(guided.scheduler, name)
    labels, ages = ["brain", "head"], [30.0, 40.0]
    together = sample(guided, labels, scalars={"age": ages}, guidance_scale=2.0, generator=[seeded(4), seeded(5)])
    assert torch.isfinite(together).all()
    scale = together.abs().amax((1, 2, 3, 4), keepdim=True)
    for place, (seed, label, age) in enumerate(zip((4, 5), labels, ages, strict=True)):
        alone = sample(guided, label, scalars={"age": age}, guidance_scale=2.0, generator=seeded(seed))
        assert difference(together[place : place + 1] / scale[place], alone / scale[place]) <= 1e-5
    assert difference(*(together / scale)) > 1e-3


@pytest.mark.parametrize("name", DIFFUSION_SCHEDULERS)
def test_every_solver_keeps_the_latents_in_the_range_of_the_codebook(pipe, name):
    pipe.scheduler = swap_scheduler(pipe.scheduler, name)
    latents = sample(pipe, "brain", num_inference_steps=4, output_type="latent")
    tolerance = 0.1 if name == "deis" else 1e-3  # DEIS extrapolates the noise in its last step
    assert latents.abs().max() <= 1 + tolerance


def test_latents_leave_the_range_without_the_clip():
    pipe = make_patch_volume_pipeline(clip_latents=False)
    assert sample(pipe, "brain", output_type="latent").abs().max() > 1.1


def test_flow_matching_runs():
    assert torch.isfinite(sample(make_patch_volume_pipeline(scheduler="flow-matching"), "brain")).all()


def test_one_generator_draws_the_whole_batch(pipe):
    latents = torch.randn((2, 4, 8, 4, 4), generator=seeded(1))
    torch.testing.assert_close(
        sample(pipe, "brain", batch_size=2, generator=seeded(1)), sample(pipe, "brain", batch_size=2, latents=latents)
    )


# --- conditions ------------------------------------------------------------------------------------------------------


def test_label_scalar_and_size_move_the_output(guided):
    def latents(*labels, **arguments):
        return sample(guided, *labels, output_type="latent", **arguments)

    reference = latents("brain", scalars=SCALARS)
    assert difference(reference, latents("head", scalars=SCALARS)) > 1e-3
    assert difference(reference, latents("brain", scalars={**SCALARS, "age": 70.0})) > 1e-3
    assert difference(reference, latents("brain", scalars={"volume": 2.5})) > 1e-3
    assert difference(reference, latents("brain")) > 1e-3
    assert difference(reference, latents(size=(16, 8, 8))) > 1e-3
    larger = latents("brain", scalars=SCALARS, size=(16, 8, 16), latents=noise(1, 4, 8, 4, 8))
    smaller = latents("brain", scalars=SCALARS, latents=noise(1, 4, 8, 4, 8)[..., :4])
    assert difference(larger[..., :4], smaller) > 1e-3


def test_a_class_is_named_or_numbered(pipe):
    assert torch.equal(sample(pipe, "head"), sample(pipe, 2))
    unnamed = make_patch_volume_pipeline(classes=None, processor=make_processor(size=(16, 8, 8)))
    latents = [sample(each, label, output_type="latent") for each, label in ((pipe, 2), (unnamed, 2), (unnamed, "2"))]
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[1], latents[2])


def test_guidance_of_one_is_none_and_more_moves_the_output(guided):
    latents = noise(1, 4, 8, 4, 4)
    calls = []
    guided.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    outputs = [
        sample(guided, "brain", output_type="latent", latents=latents, **given)
        for given in ({}, {"guidance_scale": 1}, {"guidance_scale": 3.0})
    ]
    assert torch.equal(outputs[0], outputs[1]) and difference(outputs[0], outputs[2]) > 1e-3
    assert calls == [1] * 6 + [2] * 3


def test_a_callback_can_change_the_guidance(guided):
    def callback(pipeline, index, timestep, tensors):
        pipeline._guidance_scale = 3.0
        return tensors

    latents = noise(1, 4, 8, 4, 4)
    constant, changed = (
        sample(guided, "brain", latents=latents, guidance_scale=2.0, output_type="latent", callback_on_step_end=each)
        for each in (None, callback)
    )
    assert guided.guidance_scale == 3.0 and difference(constant, changed) > 1e-3


def test_guidance_is_the_published_formula(guided):
    latents, timestep = noise(1, 4, 8, 4, 4), torch.tensor(500)
    guided.scheduler.set_timesteps(3)
    absent = torch.full((1, 2), torch.nan)
    given = {"class_labels": torch.tensor([1]), "scalars": torch.tensor([[2.5, 40.0]])}
    with torch.no_grad():
        conditional = guided.unet(latents, timestep, **given).sample
        unconditional = guided.unet(latents, timestep, torch.tensor([-1]), absent).sample
        result = guided.predict(latents, timestep, given, 3.0)
    torch.testing.assert_close(result, 3 * conditional - 2 * unconditional, atol=1e-5, rtol=0)


def test_scalars_reach_the_network_in_its_own_order(guided):
    received = []
    guided.unet.register_forward_pre_hook(lambda _, args, given: received.append(given["scalars"]), with_kwargs=True)
    sample(guided, "brain", scalars={"age": [30, 40], "volume": 2}, num_inference_steps=1)
    torch.testing.assert_close(received[0], torch.tensor([[2.0, 30.0], [2.0, 40.0]]))


@pytest.mark.parametrize("optional", [True, False])
def test_the_unconditional_half_of_guidance_has_no_condition_at_all(optional):
    pipe, received = make_scalar_pipeline(null_condition=True, optional_scalars=optional), []
    pipe.unet.register_forward_pre_hook(lambda _, args, given: received.append(given), with_kwargs=True)
    sample(pipe, "head", scalars=SCALARS, guidance_scale=2.0, num_inference_steps=1)
    assert received[0]["class_labels"].tolist() == [2, -1]
    assert received[0]["scalars"].isnan().tolist() == [[False, False], [True, True]]


def test_dropped_scalars_alone_are_no_guidance():
    pipe = make_scalar_pipeline(optional_scalars=True)
    assert torch.isfinite(sample(pipe, "brain")).all()
    with pytest.raises(ValueError, match="not trained without its conditions"):
        sample(pipe, "brain", guidance_scale=3)
    with pytest.raises(ValueError, match="class-conditional: give class_labels"):
        sample(pipe)


def test_dropped_labels_alone_need_all_conditions_or_none():
    pipe = make_scalar_pipeline(null_condition=True)
    assert torch.isfinite(sample(pipe, "brain", scalars=SCALARS, guidance_scale=2.0)).all()
    assert torch.isfinite(sample(pipe)).all()
    with pytest.raises(ValueError, match="scalars lacks age, volume"):
        sample(pipe, "brain")
    with pytest.raises(ValueError, match="scalars were given without a class"):
        sample(pipe, scalars=SCALARS)


def test_a_model_with_dropped_conditions_draws_without_a_class(guided):
    image = guided(num_inference_steps=2, generator=seeded(0)).volumes[0]
    assert image.shape == (8, 8, 16) and image.header.get_zooms() == (2.0, 2.0, 3.0)


# --- grids, axes and units -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", CLASSES)
def test_each_class_has_its_grid_spacing_and_unit(pipe, label, tmp_path):
    entry = CLASSES[label]
    output = pipe(label, num_inference_steps=2, generator=seeded(0))
    image = nib.load(voxdiff.save_volumes(output, tmp_path)[0])
    assert image.shape == tuple(entry["size"])
    np.testing.assert_allclose(image.header.get_zooms(), entry["spacing"])
    np.testing.assert_allclose(image.affine @ [*(np.array(entry["size"]) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-5)
    assert intensity_unit(image) == ("HU" if label != "brain" else "a.u.")
    low, high = (0, 1) if label == "brain" else (entry["low"], entry["high"])
    values = image.get_fdata()
    assert low <= values.min() and values.max() <= high and np.ptp(values) > 0.01 * (high - low)


def test_classes_of_one_grid_share_a_batch_each_with_its_unit(pipe):
    images = pipe(["brain", "head"], num_inference_steps=2, generator=[seeded(0), seeded(1)]).volumes
    assert [intensity_unit(image) for image in images] == ["a.u.", "HU"]
    assert [image.header.get_zooms() for image in images] == [(2.0, 2.0, 3.0), (1.0, 1.0, 1.0)]


def test_another_grid_keeps_the_spacing_and_needs_no_whole_patches(pipe):
    assert pipe.size_divisor == 8 and pipe.vae.size_divisor == 8
    coarse = make_patch_volume_pipeline(vae=make_autoencoder(patch_size=16))
    image = coarse(["brain", "chest"], size=(8, 24, 8), num_inference_steps=1, generator=seeded(0)).volumes[1]
    assert image.shape == (8, 24, 8) and image.header.get_zooms() == (1.0, 1.0, 1.0)


def test_another_spacing_resamples_what_was_generated(pipe):
    [image] = pipe("brain", spacing=(4, 4, 6), num_inference_steps=2, generator=seeded(0)).volumes
    assert image.shape == (8, 4, 4) and image.header.get_zooms() == (4.0, 4.0, 6.0)
    cells = sample(pipe, "brain", num_inference_steps=2)[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).unfold(2, 2, 2)
    np.testing.assert_allclose(image.get_fdata(), cells.mean((3, 4, 5)).numpy(), atol=1e-5)
    assert sample(pipe, "brain", spacing=(4, 4, 6)).shape == (1, 1, 8, 4, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_marked_volume_keeps_its_axis(axis):
    """Its latents, put in the place of the sampled ones, come out as an image marked at the same end of the same axis."""
    pipe = make_patch_volume_pipeline(vae=make_autoencoder(num_embeddings=512))
    volume = torch.rand(1, 1, 24, 16, 32, generator=seeded(5)) - 0.5
    marked = volume.clone()
    marked.narrow(2 + axis, 0, 8).add_(1)
    values = []
    for given in (volume, marked):
        latents = pipe.encode(given)
        assert latents.shape == (1, 4, 12, 8, 16)
        [image] = pipe(
            "brain",
            size=given.shape[2:],
            num_inference_steps=1,
            callback_on_step_end=lambda *_, latents=latents: {"latents": latents},
        ).volumes
        values.append(image.get_fdata())
    change = np.abs(values[1] - values[0])
    halves = [np.array_split(change, 2, axis=along) for along in range(3)]
    ratios = [first.mean() / last.mean() for first, last in halves]
    assert ratios[axis] > 1.3 and all(0.8 < ratio < 1.2 for along, ratio in enumerate(ratios) if along != axis)


def test_the_published_axis_order_is_the_same_model_turned():
    """Sampled and decoded in z, x, y, seen from outside in x, y, z."""
    published = make_patch_volume_pipeline(make_autoencoder(axis_order="zxy"), make_biflownet(**CHANNELS))
    plain = make_patch_volume_pipeline(make_autoencoder(axis_order="xyz"), make_biflownet(**CHANNELS, axis_order="xyz"))
    latents = noise(1, 4, 12, 4, 8)
    volume = sample(published, "brain", size=(24, 8, 16), latents=latents)
    turned = sample(plain, "brain", size=(16, 24, 8), latents=to_network(latents, "zxy"))
    assert volume.shape == (1, 1, 24, 8, 16)
    torch.testing.assert_close(to_network(volume, "zxy"), turned)


# --- autoencoders and networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [True, False])
def test_the_plain_latent_diffusion_baseline(kl, tmp_path):
    plain = make_plain_pipeline(kl)
    volume = sample(plain)
    assert volume.shape == (1, 1, 8, 8, 16) and volume.std() > 1e-3
    plain.save_pretrained(tmp_path)
    assert torch.equal(sample(Pipeline.from_pretrained(tmp_path)), volume)


def test_encode_is_undone_by_denormalisation(pipe):
    volume = torch.rand(1, 1, 8, 8, 16, generator=seeded(0)) * 2 - 1
    with torch.no_grad():
        latents = pipe.encode(volume)
        torch.testing.assert_close(pipe.vae.denormalize_latents(latents), pipe.vae.encode(volume).latents)
        torch.testing.assert_close(pipe.decode(latents), pipe.vae(volume).sample)


def test_slab_decoding_gives_the_same_volume(pipe):
    whole = sample(pipe, "brain", size=(32, 16, 16))
    pipe.vae.enable_slab_decoding(max_memory_gb=0.001)
    assert difference(sample(pipe, "brain", size=(32, 16, 16)), whole) <= 1e-5


def test_bfloat16_stays_close(guided):
    latents, timestep = noise(1, 4, 8, 4, 4), torch.tensor(500)
    conditions = {"class_labels": torch.tensor([1]), "scalars": torch.tensor([[2.5, 40.0]])}
    guided.scheduler.set_timesteps(3)
    with torch.no_grad():
        reference = guided.predict(latents, timestep, conditions, 2.0)
        halved = guided.to(torch.bfloat16).predict(latents, timestep, conditions, 2.0)
    assert halved.dtype == torch.float32
    assert 0 < difference(halved, reference) < 0.05 * reference.abs().max()
    assert torch.isfinite(sample(guided, "brain", scalars=SCALARS)).all()


# --- output, provenance, saving --------------------------------------------------------------------------------------


def test_output_types(pipe):
    array = sample(pipe, "brain", output_type="np")
    np.testing.assert_allclose(array, sample(pipe, "brain").numpy())
    assert sample(pipe, "brain", output_type="latent").shape == (1, 4, 8, 4, 4)
    assert isinstance(pipe("brain", num_inference_steps=1, return_dict=False), tuple)


def test_callback_sees_every_step(pipe):
    seen = []

    def callback(pipeline, index, timestep, tensors):
        seen.append(index)
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe("brain", num_inference_steps=3, output_type="latent", callback_on_step_end=callback).volumes
    assert seen == [0, 1, 2] and pipe.num_timesteps == 3 and not latents.any()


def test_provenance_names_the_conditions(guided):
    output = guided(
        ["brain", 2],
        scalars={"age": [30, 40]},
        size=(16, 8, 16),
        spacing=(1, 1, 1),
        guidance_scale=2,
        num_inference_steps=1,
        generator=[seeded(7), seeded(8)],
    )
    json.dumps(output.provenance, allow_nan=False)
    assert [record["seed"] for record in output.provenance] == [7, 8]
    assert output.provenance[1]["conditions"] == {
        "class": "head",
        "class_label": 2,
        "scalars": {"age": 40.0},
        "guidance_scale": 2.0,
        "size": [16, 8, 16],
        "spacing": [1.0, 1.0, 1.0],
        "resampled_to": [1.0, 1.0, 1.0],
    }


def test_a_reloaded_pipeline_gives_the_same_volumes(guided, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)  # to caplog
    guided.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "PatchVolumeLDMPipeline" and index["classes"] == CLASSES
    assert [index[name][1] for name in ("vae", "unet")] == ["AutoencoderPatchVolume", "BiFlowNet3DModel"]
    loaded = Pipeline.from_pretrained(tmp_path)
    assert type(loaded) is PatchVolumeLDMPipeline and "Expected types" not in caplog.text
    assert loaded.volume_classes == guided.volume_classes
    for label in CLASSES:
        assert torch.equal(sample(loaded, label, scalars=SCALARS), sample(guided, label, scalars=SCALARS))
    record = loaded("brain", num_inference_steps=1).provenance[0]
    assert len(record["weights_sha256"]) == 2 and record["model"] == str(tmp_path)


def test_it_loads_from_a_hub_cache_without_a_network(pipe, tmp_path):
    repository, sha = tmp_path / "models--org--pvldm", "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / sha
    pipe.save_pretrained(snapshot)
    (snapshot / "pipeline.py").write_text("import voxdiff\nfrom voxdiff import PatchVolumeLDMPipeline\n")
    files = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file()]
    listing = {str(path): {"size": (snapshot / path).stat().st_size, "blob_id": "0" * 40} for path in files}
    for name, content in (
        ("refs/main", sha),
        (f"trees/{sha}.json", json.dumps({"format_version": 1, "files": listing})),
    ):
        (repository / name).parent.mkdir()
        (repository / name).write_text(content)
    loaded = Pipeline.from_pretrained("org/pvldm", cache_dir=tmp_path)
    assert type(loaded) is PatchVolumeLDMPipeline
    assert torch.equal(sample(loaded, "brain"), sample(pipe, "brain"))
    assert loaded("brain", num_inference_steps=1).provenance[0]["revision"] == sha


def test_diffusers_finds_the_components_in_the_signature():
    expected, optional = PatchVolumeLDMPipeline._get_signature_keys(PatchVolumeLDMPipeline)
    assert set(expected) == {"vae", "unet", "scheduler"}
    assert set(optional) == {"processor", "classes", "clip_latents", "latent_range"}
    parameters = inspect.signature(PatchVolumeLDMPipeline.__call__).parameters
    positional = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "class_labels"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": None}, r"class-conditional: give class_labels, of brain \(0\), chest \(1\), head \(2\)"),
        ({"class_labels": "knee"}, r"no class 'knee'; this model has brain \(0\)"),
        ({"class_labels": 3}, "no class 3; this model has"),
        ({"class_labels": ["brain", "chest"]}, "different grids, .*call once a grid, or pass size"),
        ({"class_labels": ["brain", "head"], "batch_size": 3}, "class_labels has 2 entries for 3 volumes"),
        (
            {"size": (12, 8, 8)},
            r"divisible by 8 for this model; the nearest valid grids are \(8, 8, 8\) and \(16, 8, 8\)",
        ),
        ({"size": (16, 8)}, "give three whole numbers"),
        ({"spacing": (0, 1, 1)}, "give three positive values in mm"),
        ({"spacing": (1, 1, 1), "output_type": "latent"}, "latents are not resampled"),
        ({"spacing": (1, 1, 1), "class_labels": ["brain", "head"]}, "different spacings"),
        ({"scalars": {"age": 3}}, "no scalar conditions; leave them out"),
        ({"guidance_scale": 2}, "not trained without its conditions .*; leave it out"),
        ({"guidance_scale": 0.5}, "give 1, which is no guidance, or a larger number"),
        ({"guidance_scale": float("inf")}, "or a larger number"),
        ({"guidance_scale": "2"}, "or a larger number"),
        ({"latents": torch.zeros(1, 4, 4, 4, 4)}, r"this call needs \(1, 4, 8, 4, 4\)"),
        ({"num_inference_steps": 0}, "give a whole number from 1 to 1000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generator": [torch.Generator()] * 2}, "2 generators were given for a batch of 1"),
        ({"output_type": "pil"}, "allowed are nifti, pt, np, latent"),
    ],
)
def test_bad_arguments_raise(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, **{"class_labels": "brain", **arguments})


def test_conditions_of_an_unconditional_model_raise(plain):
    with pytest.raises(ValueError, match="no classes; leave them out"):
        sample(plain, 0)
    with pytest.raises(ValueError, match="no scalar conditions; leave them out"):
        sample(plain, scalars={"age": 3})


def test_guidance_without_a_condition_raises(guided):
    with pytest.raises(ValueError, match="no condition to be guided by"):
        sample(guided, guidance_scale=2.0)


def test_a_model_without_a_grid_asks_for_one():
    pipe = make_patch_volume_pipeline(classes=None, processor=make_processor(size=None))
    with pytest.raises(ValueError, match="no grid of its own"):
        sample(pipe, 0)
    assert sample(pipe, 0, size=(8, 8, 8)).shape == (1, 1, 8, 8, 8)


def test_a_scheduler_that_clips_unbounded_latents_raises(plain):
    plain.scheduler = make_scheduler("med-ddpm")
    with pytest.raises(ValueError, match="DDPMScheduler clips x0"):
        sample(plain)


def test_parts_that_do_not_fit_raise():
    with pytest.raises(ValueError, match="4 latent channels, but the network takes 2 and gives 2"):
        make_patch_volume_pipeline(unet=make_biflownet())
    unset = make_autoencoder()
    unset.register_to_config(latent_min=None, latent_max=None)
    with pytest.raises(ValueError, match="no latent_min and latent_max"):
        make_patch_volume_pipeline(vae=unset)
    with pytest.raises(ValueError, match="AutoencoderKL3D have no bounds; pass clip_latents=False"):
        make_patch_volume_pipeline(vae=make_kl_autoencoder())
    with pytest.raises(ValueError, match="the network has no class table"):
        make_patch_volume_pipeline(unet=make_unet(4, 4))
    with pytest.raises(ValueError, match=r"grid is \(12, 8, 8\), but every size must be divisible by 8"):
        make_patch_volume_pipeline(classes={"brain": {"id": 0, "size": (12, 8, 8)}})
