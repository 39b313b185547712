"""Train AutoencoderPatchVolume in its two stages; without patches, or with a KL posterior, a plain LDM's autoencoder.

accelerate launch training_scripts/train_patch_volume_autoencoder.py --stage patch --train_data_dir DIR --output_dir OUT
accelerate launch training_scripts/train_patch_volume_autoencoder.py --stage volume --train_data_dir DIR \\
    --pretrained_model_name_or_path OUT --output_dir OUT2
accelerate launch training_scripts/train_patch_volume_autoencoder.py --cohort mr,ct --grids 64 --autoencoder kl \\
    --block_out_channels 48,96,96 --output_dir OUT
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import HfArgumentParser

import voxdiff
from voxdiff.hub.registry import resolve_model
from voxdiff.metrics.perceptual import load_perceptual
from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.autoencoder_arguments import (
    LAYOUT,
    PUBLISHED_OPTIMISER,
    PUBLISHED_RUNS,
    AutoencoderArguments,
    AutoencoderDataArguments,
)
from voxdiff.training.checkpoints import find_checkpoint, save_model
from voxdiff.training.objective_autoencoder import AutoencoderObjective
from voxdiff.training.perceptual_loss import TriPlanePerceptualLoss
from voxdiff.training.random_crops import RandomCrops
from voxdiff.training.script import launch_command, one_sentence_errors, removed_on_error, require_outside
from voxdiff.training.volume_samples import HeldOutVolumes, VolumeSamples, hold_out
from voxdiff.workflows.autoencoder_report import check_autoencoder, save_reconstructions, write_autoencoder_report


def main() -> None:
    data, model, args = parse_arguments()
    output_dir = Path(args.output_dir)
    check_before_loading(data, args)

    torch.manual_seed(args.seed)
    accelerator = make_accelerator(args)
    vae = load_autoencoder(model.pretrained_model_name_or_path, model.stage) or model.make_autoencoder()
    cache_dir = Path(data.cache_dir or output_dir / "cache")
    with removed_on_error(cache_dir, output_dir), accelerator.main_process_first():
        sources, left_out = data.make_sources(cache_dir)
        samples, held_out = hold_out(sources, model.num_held_out)
        crop = model.crop_of(vae, [source.processor.size for source in sources])
        check_data(samples, args.train_batch_size * accelerator.num_processes)
        objective = make_objective(vae, model, crop, accelerator)
    if accelerator.is_main_process:
        report(samples, left_out, vae, objective, accelerator.num_processes)

    run_config = {"data": asdict(data), "model": asdict(model), "training": asdict(args), "command": launch_command()}
    shown = [held_out[place % len(held_out)] for place in range(args.num_validation_volumes)]
    trainer = Trainer(
        accelerator,
        vae,
        None,
        objective,
        samples,
        args,
        run_config,
        validate=lambda trained, folder, step: save_reconstructions(trained, shown, folder, f"step-{step:06d}.png"),
    )
    vae = trainer.train()
    if accelerator.is_main_process:
        finish(vae, held_out, output_dir)


def parse_arguments() -> tuple[AutoencoderDataArguments, AutoencoderArguments, TrainingArguments]:
    """What was asked for, with the published settings of the stage and compression where nothing was."""
    parser = HfArgumentParser((AutoencoderDataArguments, AutoencoderArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(**PUBLISHED_OPTIMISER, **LAYOUT)
    _, model, _ = parser.parse_args_into_dataclasses()
    parser.set_defaults(**PUBLISHED_RUNS[model.published_run])
    return parser.parse_args_into_dataclasses()


def check_before_loading(data: AutoencoderDataArguments, args: TrainingArguments) -> None:
    if args.push_to_hub:
        raise ValueError(
            "An autoencoder is published with its diffusion model; give --push_to_hub to train_patch_volume_ldm.py."
        )
    if data.train_data_dir:
        require_outside(Path(args.output_dir), Path(data.train_data_dir))
    find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)


def load_autoencoder(name: str | None, stage: str) -> Autoencoder3D | None:
    """A pretrained autoencoder, ready for the stage; None if none was given."""
    if name is None:
        return None
    folder = resolve_model(name)
    kind = Autoencoder3D.load_config(folder)["_class_name"]
    if kind not in (AutoencoderPatchVolume.__name__, AutoencoderKL3D.__name__):
        raise ValueError(f"{name} holds a {kind}; give the folder of an autoencoder that this script trained.")
    vae = getattr(voxdiff, kind).from_pretrained(folder, dtype=torch.float32)
    if stage == "volume":
        vae.freeze_encoder()
    elif isinstance(vae, AutoencoderPatchVolume):
        vae.register_to_config(latent_min=None, latent_max=None)  # the codebook is about to move
    return vae


def check_data(samples: VolumeSamples, batch: int) -> None:
    smallest = min(map(len, samples.buckets))
    if smallest < batch:
        raise ValueError(
            f"A grid has {smallest} volumes to train on, fewer than a batch of {batch}; add volumes, or lower "
            "--train_batch_size (or --num_held_out)."
        )


def make_objective(
    vae: Autoencoder3D, model: AutoencoderArguments, crop: tuple[int, ...] | None, accelerator: Accelerator
) -> AutoencoderObjective:
    perceptual = None
    if model.perceptual_weight:
        backbone = load_perceptual(model.lpips_weights, heads=model.lpips_heads, device=accelerator.device)
        share = {} if model.perceptual_share is None else {"share": model.perceptual_share}
        perceptual = TriPlanePerceptualLoss(backbone, **share)
    return AutoencoderObjective(
        vae,
        crops=RandomCrops(crop, augment=model.augment, count=model.patches_per_volume),
        weights=model.loss_weights(vae),
        perceptual=perceptual,
        adversary=model.make_discriminator(),
        adversarial_start=model.first_adversarial_step,
    )


def report(
    samples: VolumeSamples, left_out: list[str], vae: Autoencoder3D, objective: AutoencoderObjective, processes: int
) -> None:
    for problem in left_out:
        print(f"left out: {problem}")
    trained, fixed = (
        sum(weight.numel() for weight in vae.parameters() if weight.requires_grad is wanted) / 1e6
        for wanted in (True, False)
    )
    crops = "x".join(map(str, objective.crops.size)) if objective.crops.size else "whole volumes"
    perceptual = objective.perceptual.backbone.name if objective.perceptual else "none"
    print(
        f"{len(samples)} volumes, seen as {crops}; {trained:.2f} M parameters learn, {fixed:.2f} M stay; perceptual "
        f"loss: {perceptual}; {processes} process(es)",
        flush=True,
    )


def finish(vae: Any, held_out: HeldOutVolumes, output_dir: Path) -> None:
    """Measure the trained autoencoder, give it the scale of its latents, and save it with its report."""
    findings = write_autoencoder_report(vae, held_out, output_dir)
    if isinstance(vae, AutoencoderPatchVolume):
        vae.update_latent_range()
    else:
        vae.update_latent_range(findings["latent_mean"], findings["latent_std"])
    save_model(vae, output_dir)
    problems = " ".join(check_autoencoder(findings)) or "fit for diffusion"
    patchwise = f" ({findings['patch_psnr']:.2f} dB patch by patch)" if "patch_psnr" in findings else ""
    print(
        f"PSNR {findings['psnr']:.2f} dB{patchwise}, SSIM {findings['ssim']:.3f} on {findings['volumes']} volumes: {problems}"
    )


if __name__ == "__main__":
    with one_sentence_errors():
        main()
