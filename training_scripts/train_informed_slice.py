"""Train InformedSlicePipeline in its stages, each from the output folders of those before.

accelerate launch training_scripts/train_informed_slice.py --stage autoencoder --cohort flair --resolution 64 \\
    --block_out_channels 32,64,64 --output_dir VAE
accelerate launch training_scripts/train_informed_slice.py --stage slice --cohort flair --resolution 64 --vae VAE \\
    --block_out_channels 64,128,128 --output_dir SLICE
accelerate launch training_scripts/train_informed_slice.py --stage generator --latents_dir SLICE/cache/latents --vae VAE \\
    --block_out_channels 64,128,128 --output_dir GENERATOR
accelerate launch training_scripts/train_informed_slice.py --stage volume --latents_dir SLICE/cache/latents --vae VAE \\
    --pretrained_model_name_or_path SLICE --slice_model GENERATOR --known_slice_indicator --output_dir OUT

The baseline Make-A-Volume: the stages slice and volume with --informed_slice none.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from transformers import HfArgumentParser

from voxdiff.hub.publish import require_access
from voxdiff.metrics.perceptual import load_perceptual
from voxdiff.models.unet_informed_slice import InformedSliceUNetModel
from voxdiff.pipelines.mask_values import MaskEncoder
from voxdiff.pipelines.pipeline_informed_slice import InformedSlicePipeline
from voxdiff.pipelines.slice_codec import slice_compression
from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.checkpoints import find_checkpoint, save_model
from voxdiff.training.informed_slice_arguments import PUBLISHED_RUNS, InformedSliceArguments
from voxdiff.training.informed_slice_parts import (
    SCHEDULER_FOLDER,
    load_part,
    load_slice_model,
    make_network,
)
from voxdiff.training.informed_slice_stages import require_options, require_same_task, require_volumes
from voxdiff.training.loop import Objective
from voxdiff.training.objective_informed_slice import SliceGeneratorObjective, SliceObjective, VolumeTuningObjective
from voxdiff.training.objective_slice_autoencoder import SliceAutoencoderObjective
from voxdiff.training.script import launch_command, one_sentence_errors, removed_on_error, require_outside
from voxdiff.training.slice_autoencoder_arguments import SliceAutoencoderArguments
from voxdiff.training.slice_source_arguments import SliceSourceArguments
from voxdiff.training.slice_sources import SliceSource
from voxdiff.training.slice_volumes import SliceVolumes, hold_out_subjects
from voxdiff.volumes import save_volumes
from voxdiff.workflows.autoencoder_report import REPORT_FILE
from voxdiff.workflows.cached_slices import SliceLatentDataset, encode_source, plan_slices
from voxdiff.workflows.publish_run import publish_run
from voxdiff.workflows.slice_autoencoder_report import (
    check_slice_autoencoder,
    describe_report,
    require_sound_autoencoder,
    save_slice_reconstructions,
    write_slice_autoencoder_report,
)


def main() -> None:
    data, model, autoencoder, args = parse_arguments()
    check_before_loading(data, model, autoencoder, args)
    torch.manual_seed(args.seed)
    accelerator = make_accelerator(args)
    run_config = {
        "data": asdict(data),
        "model": asdict(model) | {"autoencoder": asdict(autoencoder)},
        "training": asdict(args),
        "command": launch_command(),
    }
    if model.stage == "autoencoder":
        train_autoencoder(data, model, autoencoder, args, accelerator, run_config)
    else:
        train_diffusion(data, model, args, accelerator, run_config)


def parse_arguments() -> tuple[
    SliceSourceArguments, InformedSliceArguments, SliceAutoencoderArguments, TrainingArguments
]:
    """What was asked for, with the published optimiser of the stage where nothing was."""
    kinds = (SliceSourceArguments, InformedSliceArguments, SliceAutoencoderArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, description=__doc__)
    parser.set_defaults(channels_last=False)
    _, model, _, _ = parser.parse_args_into_dataclasses()
    parser.set_defaults(**PUBLISHED_RUNS[model.stage])
    return parser.parse_args_into_dataclasses()


def check_before_loading(
    data: SliceSourceArguments,
    model: InformedSliceArguments,
    autoencoder: SliceAutoencoderArguments,
    args: TrainingArguments,
) -> None:
    autoencoder.require_stage(model)
    output_dir = Path(args.output_dir)
    require_options(data, model, args)
    if data.train_data_dir:
        require_outside(output_dir, Path(data.train_data_dir))
    require_same_task(find_checkpoint(output_dir, args.resume_from_checkpoint), model)
    if args.push_to_hub:
        require_access(args.hub_model_id)


def train_autoencoder(
    data: SliceSourceArguments,
    model: InformedSliceArguments,
    autoencoder: SliceAutoencoderArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
    run_config: dict[str, Any],
) -> None:
    output_dir = Path(args.output_dir)
    cache_dir = Path(data.cache_dir or output_dir / "cache")
    with removed_on_error(cache_dir, output_dir), accelerator.main_process_first():
        source, left_out = data.make_source(cache_dir)
        samples, held_out = hold_out_subjects(source, autoencoder.number_held_out)
        grid = source.processor.size
        name = model.pretrained_model_name_or_path
        vae = (
            load_part("pretrained_model_name_or_path", name, (AutoencoderKL,), component="vae")[0]
            if name
            else autoencoder.make_autoencoder(model, max(grid[:2]))
        )
        batch = args.train_batch_size * accelerator.num_processes
        require_volumes(model, grid=grid, divisor=slice_compression(vae), volumes=len(samples), batch=batch)
        weights = autoencoder.loss_weights
        perceptual = (
            load_perceptual(autoencoder.lpips_weights, heads=autoencoder.lpips_heads, device=accelerator.device)
            if weights.perceptual
            else None
        )
    if accelerator.is_main_process:
        report(left_out, len(samples), vae, accelerator)
    objective = SliceAutoencoderObjective(
        vae,
        slices_per_volume=model.number_of_slices,
        mask_share=autoencoder.share_of_masks,
        weights=weights,
        perceptual=perceptual,
    )
    shown = [held_out[place % len(held_out)][kind] for place, kind in enumerate(["image", "mask"])]
    vae = Trainer(
        accelerator,
        vae,
        None,
        objective,
        samples,
        args,
        run_config,
        validate=lambda vae, folder, step: save_slice_reconstructions(vae, shown, folder, f"step-{step:06d}.png"),
    ).train()
    if accelerator.is_main_process:
        finish_autoencoder(vae, held_out, output_dir)


def finish_autoencoder(vae: AutoencoderKL, held_out: SliceVolumes, output_dir: Path) -> None:
    """Measure the trained autoencoder, give it the scale of its latents, and save it with its report."""
    findings = write_slice_autoencoder_report(vae, held_out, output_dir)
    std = findings["image"]["latent_std"]
    if not std > 0:
        raise ValueError(f"The latents of images do not vary ({output_dir / REPORT_FILE}); train longer.")
    vae.register_to_config(scaling_factor=1 / std)
    save_model(vae, output_dir)
    problems = " ".join(check_slice_autoencoder(findings)) or "fit for diffusion"
    print(f"{describe_report(findings)}: {problems}; scaling factor {1 / std:.4g}")


def train_diffusion(
    data: SliceSourceArguments,
    model: InformedSliceArguments,
    args: TrainingArguments,
    accelerator: Accelerator,
    run_config: dict[str, Any],
) -> None:
    output_dir = Path(args.output_dir)
    cache_dir = Path(data.cache_dir or output_dir / "cache")
    latents_dir = Path(data.latents_dir or output_dir / "cache" / "latents")
    vae, _ = load_part("vae", str(model.vae), (AutoencoderKL,), component="vae")
    vae.to(accelerator.device).requires_grad_(False).eval()
    with accelerator.main_process_first():
        with removed_on_error(latents_dir, cache_dir, output_dir):
            source, left_out = (None, []) if data.are_encoded else data.make_source(cache_dir)
            latents = plan_slices(vae, source, latents_dir) if source else SliceLatentDataset(latents_dir, vae)
            torch.manual_seed(args.seed)
            unet, scheduler = make_network(model, vae.config["latent_channels"])
            require_volumes(
                model,
                grid=latents.processor.size,
                divisor=slice_compression(vae) * 2 ** (len(unet.config["block_out_channels"]) - 1),
                volumes=len(latents),
                batch=args.train_batch_size * accelerator.num_processes,
            )
            trained = unet if model.stage != "volume" else make_pipeline(vae, unet, scheduler, latents, model)
        if accelerator.is_main_process:
            measured = None if find_checkpoint(output_dir, args.resume_from_checkpoint) else source
            require_sound_autoencoder(vae, measured, latents_dir, ignore=model.ignore_autoencoder_report)
        if source:
            encode_source(vae, source, latents)
        latents.require_complete()
    if accelerator.is_main_process:
        report(left_out, len(latents), unet, accelerator)

    objective = make_objective(model, unet, scheduler)
    component = "unet" if model.stage == "volume" else None
    validate = partial(show, source=source, args=args) if source else None
    trainer = Trainer(accelerator, trained, component, objective, latents, args, run_config, validate=validate)
    result = trainer.train()
    if not accelerator.is_main_process:
        return
    if model.stage == "volume":
        describe = data.describe(len(latents))
        publish_run(result, run_config, data=describe, global_batch_size=trainer.global_batch_size)
    else:
        scheduler.save_pretrained(output_dir / SCHEDULER_FOLDER)


def make_pipeline(
    vae: AutoencoderKL,
    unet: InformedSliceUNetModel,
    scheduler: Any,
    latents: SliceLatentDataset,
    model: InformedSliceArguments,
) -> InformedSlicePipeline:
    return InformedSlicePipeline(
        vae,
        unet,
        scheduler,
        slice_unet=load_slice_model(model, vae.config["latent_channels"], scheduler),
        processor=latents.processor.to_dict(),
        mask_values=MaskEncoder(latents.mask_values).to_dict(),
        position_rule=model.rule,
    )


def make_objective(model: InformedSliceArguments, unet: Any, scheduler: Any) -> Objective:
    if model.stage == "generator":
        return SliceGeneratorObjective(
            scheduler,
            slices_per_volume=model.number_of_slices,
            position_rule=model.rule,
            context_dim=unet.config["cross_attention_dim"],
        )
    windows: dict[str, Any] = {"window": model.window_length, "informed_slice": model.has_informed_slice}
    if model.stage == "slice":
        return SliceObjective(scheduler, **windows)
    weighting = model.timestep_weighting or "published"
    return VolumeTuningObjective(scheduler, **windows, known_share=model.share_known, timestep_weighting=weighting)


def show(
    pipeline: InformedSlicePipeline, folder: Path, step: int, *, source: SliceSource, args: TrainingArguments
) -> None:
    """Generate the first volumes anew, each from its own mask and central slice, and save them with pictures."""
    pipeline.set_progress_bar_config(disable=True)
    count = min(args.num_validation_volumes, len(source))
    subjects = [source.dataset.volumes(index, ("image", "mask")) for index in range(count)]
    output = pipeline(
        [subject["mask"] for subject in subjects],
        informed_slice=[subject["image"] for subject in subjects] if pipeline.takes_informed_slice else None,
        unit="HU" if pipeline.takes_informed_slice and source.processor.unit == "HU" else None,
        num_inference_steps=args.validation_inference_steps,
        generator=[torch.Generator().manual_seed(args.seed + index) for index in range(count)],
    )
    save_volumes(output, folder / f"step-{step:06d}", png=True)


def report(left_out: list[str], volumes: int, network: torch.nn.Module, accelerator: Accelerator) -> None:
    for problem in left_out:
        print(f"left out: {problem}")
    trained, fixed = (
        sum(weight.numel() for weight in network.parameters() if weight.requires_grad is wanted) / 1e6
        for wanted in (True, False)
    )
    processes = f"{accelerator.num_processes} process(es)"
    print(f"{volumes} volumes; {trained:.2f} M parameters learn, {fixed:.2f} M stay; {processes}", flush=True)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
