import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_pipeline, make_processor, make_unet
from goldens import load_golden

import voxdiff
from voxdiff import Pipeline, WaveletDiffusionPipeline, convert_state_dict
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, make_scheduler, swap_scheduler

DIFFUSION_SCHEDULERS = [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def condition_image(seed=0, shape=(16, 16, 8), affine=None):
    affine = np.diag([-2.0, 2.0, 3.0, 1.0]) if affine is None else affine
    return nib.Nifti1Image(np.random.default_rng(seed).random(shape, dtype=np.float32), affine)


def sample(pipe, **arguments):
    return pipe(**{"num_inference_steps": 3, "output_type": "pt", "generator": seeded(0), **arguments}).volumes


# --- the published sampler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["wdm", "cwdm"])
def test_published_sampler(case, tmp_path):
    """x0 of the network, its clip in image space, and the last five ancestral steps, before and after saving."""
    meta, state, inputs, outputs = load_golden(f"{case}_sampling")
    unet = convert_state_dict(case, state, norm_num_groups=2)
    num_conditions = meta["config"]["condition_images"]
    value_range = (0, 1) if num_conditions else (-1, 1)
    pipe = make_pipeline(
        unet,
        "wdm-ddpm",
        make_processor(size=(8, 8, 12), value_range=value_range),
        condition_volumes={f"c{place}": place for place in range(num_conditions)} or None,
    )
    pipe.save_pretrained(tmp_path)
    for candidate in (pipe, WaveletDiffusionPipeline.from_pretrained(tmp_path)):
        conditions = []
        if num_conditions:
            conditions = [candidate.encode(inputs["condition_images"])]
            torch.testing.assert_close(conditions[0], outputs["condition"], atol=meta["atol"], rtol=0)

        def predict(latents, t, candidate=candidate, conditions=conditions):
            with torch.no_grad():
                return candidate.unet(torch.cat([latents, *conditions], dim=1), t).sample

        for t in meta["config"]["timesteps"]:
            x0 = predict(inputs[f"t{t}.x"], t)
            torch.testing.assert_close(x0, outputs[f"t{t}.unclipped_pred_xstart"], atol=meta["atol"], rtol=0)
            clipped = candidate.clip_volumes(x0)
            torch.testing.assert_close(clipped, outputs[f"t{t}.pred_xstart"], atol=meta["atol"], rtol=0)

        betas = np.linspace(1e-4, 2e-2, 1000)
        bars = np.append(1.0, np.cumprod(1 - betas))  # bars[t + 1] belongs to step t
        latents = inputs["chain.x"]
        for t in meta["config"]["chain"]:
            x0 = candidate.clip_volumes(predict(latents, t)).double()
            mean = betas[t] * np.sqrt(bars[t]) / (1 - bars[t + 1]) * x0
            mean = mean + (1 - bars[t]) * np.sqrt(1 - betas[t]) / (1 - bars[t + 1]) * latents.double()
            noise = inputs[f"chain.t{t}.noise0"].double()
            latents = (mean + (t > 0) * np.sqrt(betas[t]) * noise).float()
        torch.testing.assert_close(latents, outputs["chain.sample"], atol=meta["atol"], rtol=0)
        torch.testing.assert_close(candidate.decode(latents), outputs["chain.image"], atol=meta["atol"], rtol=0)


@pytest.mark.parametrize("case", ["wdm", "cwdm"])
def test_published_chain_with_diffusers_schedule(case, monkeypatch):
    """The same five steps through the pipeline's own scheduler: its float32 schedule costs up to 5e-4 at t = 1."""
    meta, state, inputs, outputs = load_golden(f"{case}_sampling")
    unet = convert_state_dict(case, state, norm_num_groups=2)
    value_range = (0, 1) if case == "cwdm" else (-1, 1)
    conditions = {"a": 0, "b": 1, "c": 2} if case == "cwdm" else None
    processor = make_processor(size=(8, 8, 12), value_range=value_range)
    pipe = make_pipeline(unet, "wdm-ddpm", processor, condition_volumes=conditions)
    pipe.scheduler.set_timesteps(1000)
    draws = [inputs[f"chain.t{t}.noise0"] for t in meta["config"]["chain"]]
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draws.pop(0))
    encoded = [pipe.encode(inputs["condition_images"])] if conditions else []
    latents = inputs["chain.x"]
    for t in torch.tensor(meta["config"]["chain"]):
        with torch.no_grad():
            output = pipe.unet(torch.cat([latents, *encoded], dim=1), t).sample
        output = voxdiff.schedulers.constrain_prediction(pipe.scheduler, output, t, latents, pipe.clip_volumes)
        latents = pipe.scheduler.step(output, t, latents).prev_sample
    assert (latents - outputs["chain.sample"]).abs().max() < 5e-4


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFUSION_SCHEDULERS)
def test_each_sample_depends_on_its_own_generator_only(pipe, name):
    pipe.scheduler = swap_scheduler(pipe.scheduler, name)
    together = sample(pipe, batch_size=3, generator=[seeded(4), seeded(5), seeded(6)])
    # Heun's samples reach 157 in size before they shrink to 1: rounding of the batched convolutions grows with them.
    tolerance = 1e-4 if name == "heun" else 1e-5
    for place, seed in enumerate((4, 5, 6)):
        alone = sample(pipe, generator=seeded(seed))
        torch.testing.assert_close(together[place : place + 1], alone, atol=tolerance, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_one_generator_draws_the_whole_batch(pipe):
    latents = torch.randn((2, 8, 8, 8, 4), generator=seeded(1))
    torch.testing.assert_close(
        sample(pipe, batch_size=2, generator=seeded(1)), sample(pipe, batch_size=2, latents=latents)
    )


def test_the_same_call_twice_gives_the_same_volume(pipe):
    assert torch.equal(sample(pipe, generator=seeded(3)), sample(pipe, generator=seeded(3)))


# --- samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("name", DIFFUSION_SCHEDULERS)
def test_every_solver_stays_in_the_value_range(name, kind):
    pipe = make_pipeline()
    pipe.scheduler = swap_scheduler(make_scheduler("wdm-ddpm", prediction_type=kind), name)
    latents = pipe(num_inference_steps=4, output_type="latent", generator=seeded(0)).volumes
    assert torch.isfinite(latents).all()
    tolerance = 0.1 if name == "deis" else 1e-3  # DEIS extrapolates the noise in its last step
    assert pipe.decode(latents).abs().max() <= 1 + tolerance


def test_flow_matching_runs():
    pipe = make_pipeline(scheduler="flow-matching")
    assert torch.isfinite(sample(pipe)).all()


def test_voxel_space_ddpm():
    pipe = make_pipeline(make_unet(1, 1), wavelet=None)
    assert sample(pipe).shape == (1, 1, 16, 16, 8)
    assert pipe.size_divisor == 2


def test_several_outputs_and_a_label_map():
    pipe = make_pipeline(make_unet(16, 16), output_volumes={"t1": 0, "lesion": 1}, label_volumes={"lesion": 3})
    volumes = sample(pipe)
    assert volumes.shape == (1, 2, 16, 16, 8)
    assert set(volumes[:, 1].unique().tolist()) <= {0, 1, 2, 3}
    image = pipe(num_inference_steps=2, generator=seeded(0)).volumes[0]
    assert image.shape == (16, 16, 8, 2)
    np.testing.assert_array_equal(
        image.affine, np.diag([2, 2, 3, 1]) + np.array([[0, 0, 0, t] for t in (-15, -15, -10.5, 0)])
    )


@pytest.mark.parametrize("names", [("t1", "lesion"), ("lesion", "t1")])
def test_a_label_map_beside_an_image_survives_saving_exactly(names, tmp_path):
    places = {name: place for place, name in enumerate(names)}
    pipe = make_pipeline(make_unet(16, 16), output_volumes=places, label_volumes={"lesion": 3})
    exact = sample(pipe)[0]
    output = pipe(num_inference_steps=3, generator=seeded(0))
    [path] = voxdiff.save_volumes(output, tmp_path)
    read = np.moveaxis(nib.load(path).get_fdata(dtype=np.float32), -1, 0)
    np.testing.assert_array_equal(read, exact.numpy())


# --- geometry, output, provenance ------------------------------------------------------------------------------------


def test_unconditional_geometry_is_centred(pipe):
    image = pipe(num_inference_steps=1).volumes[0]
    centre = image.affine @ [7.5, 7.5, 3.5, 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-6)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == (2.0, 2.0, 3.0)


def test_output_types(pipe):
    assert isinstance(sample(pipe, output_type="np"), np.ndarray)
    np.testing.assert_allclose(sample(pipe, output_type="np"), sample(pipe).numpy())
    assert sample(pipe, output_type="latent").shape == (1, 8, 8, 8, 4)
    assert isinstance(pipe(num_inference_steps=1, return_dict=False), tuple)


def test_another_grid(pipe):
    assert sample(pipe, size=(8, 16, 12)).shape == (1, 1, 8, 16, 12)


def test_provenance_of_a_loaded_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert type(loaded) is WaveletDiffusionPipeline
    record = loaded(num_inference_steps=2, batch_size=2, generator=[seeded(7), seeded(8)]).provenance[1]
    json.dumps(record, allow_nan=False)
    assert record["seed"] == 8 and record["num_inference_steps"] == 2
    assert record["model"] == str(tmp_path) and record["voxdiff_version"] == voxdiff.__version__
    [(file, digest)] = record["weights_sha256"].items()
    import hashlib

    assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest


def test_reloaded_pipeline_gives_the_same_volume(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert torch.equal(sample(Pipeline.from_pretrained(tmp_path)), sample(pipe))


# --- conditions ------------------------------------------------------------------------------------------------------


def test_conditions_move_the_output_and_their_names_matter(translation_pipe):
    conditions = {"t1c": condition_image(1), "t2w": condition_image(2)}
    reference = sample(translation_pipe, condition_volumes=conditions)
    changed = sample(translation_pipe, condition_volumes={**conditions, "t2w": condition_image(3)})
    swapped = sample(translation_pipe, condition_volumes={"t1c": conditions["t2w"], "t2w": conditions["t1c"]})
    reordered = sample(translation_pipe, condition_volumes=dict(reversed(conditions.items())))
    assert (reference - changed).abs().max() > 1e-3
    assert (reference - swapped).abs().max() > 1e-3
    assert torch.equal(reference, reordered)


def test_condition_order_survives_saving(translation_pipe, tmp_path):
    conditions = {"t1c": condition_image(1), "t2w": condition_image(2)}
    translation_pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.condition_names == ["t1c", "t2w"]
    assert torch.equal(
        sample(loaded, condition_volumes=conditions), sample(translation_pipe, condition_volumes=conditions)
    )


def test_the_result_lies_on_the_conditions_own_grid(translation_pipe):
    affine = np.array([[-2.0, 0, 0, 30], [0, 0, 3, -20], [0, -2, 0, 11], [0, 0, 0, 1]])
    conditions = {name: condition_image(place, (14, 18, 9), affine) for place, name in enumerate(("t1c", "t2w"))}
    image = translation_pipe(conditions, num_inference_steps=1, generator=seeded(0)).volumes[0]
    assert image.shape == (14, 18, 9)
    np.testing.assert_allclose(image.affine, affine)


def test_a_model_without_a_grid_pads_the_conditions():
    pipe = make_pipeline(
        make_unet(16, 8, skip_mode="concat"),
        processor=make_processor(size=None, spacing=None),
        condition_volumes={"t2": 0},
    )
    image = pipe({"t2": condition_image(0, (13, 17, 7))}, num_inference_steps=1, generator=seeded(0)).volumes[0]
    assert image.shape == (13, 17, 7)


def test_a_list_of_subjects_is_a_batch(translation_pipe):
    subjects = [{"t1c": condition_image(s), "t2w": condition_image(s + 10)} for s in (1, 2)]
    both = sample(translation_pipe, condition_volumes=subjects, generator=[seeded(1), seeded(2)])
    alone = sample(translation_pipe, condition_volumes=subjects[1], generator=seeded(2))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; give a whole number from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"output_type": "pil"}, "output_type is 'pil'; allowed are nifti, pt, np, latent"),
        ({"generator": [torch.Generator()] * 2}, "2 generators were given for a batch of 1"),
        ({"latents": torch.zeros(1, 8, 4, 4, 4)}, r"this call needs \(1, 8, 8, 8, 4\)"),
        ({"size": (10, 16, 8)}, r"divisible by 4 for this model; the nearest valid grids are \(8, 16, 8\)"),
        ({"unit": "HU"}, "none was given; leave them out"),
        ({"condition_volumes": {}}, "condition_volumes is empty"),
        ({"size": 8}, "give three whole numbers"),
        ({"condition_volumes": {"t2": np.zeros((16, 16, 8))}}, "names t2; this model takes none"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "allowed are latents"),
    ],
)
def test_bad_arguments_raise(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(pipe, **arguments)


def test_steps_that_would_not_begin_at_pure_noise_raise(pipe):
    pipe.scheduler = swap_scheduler(pipe.scheduler, "ddim")
    with pytest.raises(ValueError, match="takes at most 500 steps or all 1000"):
        sample(pipe, num_inference_steps=600)


def test_an_unsupported_scheduler_raises(pipe):
    from diffusers import PNDMScheduler

    pipe.scheduler = PNDMScheduler()
    with pytest.raises(ValueError, match="PNDMScheduler, which voxdiff does not support"):
        sample(pipe)


def test_missing_or_wrong_conditions_raise(translation_pipe):
    with pytest.raises(ValueError, match="give condition_volumes with t1c, t2w"):
        sample(translation_pipe)
    with pytest.raises(ValueError, match="names t1c; this model takes t1c, t2w"):
        sample(translation_pipe, condition_volumes={"t1c": condition_image()})
    with pytest.raises(ValueError, match="whose grid decides"):
        sample(
            translation_pipe, condition_volumes={"t1c": condition_image(), "t2w": condition_image()}, size=(16, 16, 8)
        )


def test_conditions_on_different_grids_raise():
    pipe = make_pipeline(
        make_unet(24, 8, skip_mode="concat"),
        processor=make_processor(size=None, spacing=None),
        condition_volumes={"a": 0, "b": 1},
    )
    with pytest.raises(ValueError, match="lie on different grids"):
        pipe({"a": condition_image(0, (16, 16, 8)), "b": condition_image(0, (24, 16, 8))}, num_inference_steps=1)


def test_a_hu_model_refuses_an_mr_condition():
    processor = make_processor(intensity="window", low=-1000, high=1000, unit="HU")
    pipe = make_pipeline(make_unet(16, 8, skip_mode="concat"), processor=processor, condition_volumes={"cbct": 0})
    with pytest.raises(ValueError, match="HU"):
        sample(pipe, condition_volumes={"cbct": condition_image()})
    assert sample(pipe, condition_volumes={"cbct": condition_image()}, unit="HU").shape == (1, 1, 16, 16, 8)


def test_a_network_that_does_not_fit_the_volumes_raises(unet):
    with pytest.raises(ValueError, match="8 input and 8 output channels, but 2 output and 0 condition volumes"):
        make_pipeline(unet, output_volumes={"t1": 0, "t2": 1})
    with pytest.raises(ValueError, match="number them 0, 1, 2"):
        make_pipeline(unet, output_volumes={"t1": 1})


def test_callback_can_change_the_latents(pipe):
    seen = []

    def callback(pipeline, index, timestep, tensors):
        seen.append((index, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe(num_inference_steps=3, output_type="latent", callback_on_step_end=callback).volumes
    assert [index for index, _ in seen] == [0, 1, 2] and pipe.num_timesteps == 3
    assert not latents.any()
