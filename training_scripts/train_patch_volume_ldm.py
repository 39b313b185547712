"""Train PatchVolumeLDMPipeline on the latents of a trained autoencoder: BiFlowNet, or a plain 3D U-Net.

accelerate launch training_scripts/train_patch_volume_ldm.py --vae VAE --train_data_dir DIR --class_column kind \\
    --scalar_columns age --label_dropout 0.1 --output_dir OUT
accelerate launch training_scripts/train_patch_volume_ldm.py --vae VAE --cohort mr,ct --grids "64;64,64,48" \\
    --output_dir OUT
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from transformers import HfArgumentParser

import voxdiff
from voxdiff.hub.publish import require_access
from voxdiff.hub.registry import resolve_model
from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.pipelines.pipeline_patch_volume_ldm import PatchVolumeLDMPipeline
from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.checkpoints import find_checkpoint
from voxdiff.training.class_sources import VolumeSource
from voxdiff.training.latent_model_arguments import LatentModelArguments
from voxdiff.training.objective_latent import LatentDiffusionObjective
from voxdiff.training.script import launch_command, one_sentence_errors, removed_on_error, require_outside
from voxdiff.training.source_arguments import SourceArguments
from voxdiff.workflows.autoencoder_report import (
    check_autoencoder,
    read_autoencoder_report,
    require_sound,
    write_autoencoder_report,
)
from voxdiff.workflows.cached_latents import LatentDataset, encode_latents, plan_latents
from voxdiff.workflows.publish_run import publish_run

AUTOENCODERS = ("AutoencoderPatchVolume", "AutoencoderKL3D")
REPORTED_VOLUMES = 8  # of each class and grid


def main() -> None:
    parser = HfArgumentParser((SourceArguments, LatentModelArguments, TrainingArguments), description=__doc__)
    data, model, args = parser.parse_args_into_dataclasses()
    output_dir = Path(args.output_dir)
    check_before_loading(data, model, args)
    accelerator = make_accelerator(args)
    base = load_base(model)
    vae = (base.vae if base else load_autoencoder(model.vae)).to(accelerator.device).requires_grad_(False)

    cache_dir = Path(data.cache_dir or output_dir / "cache")
    latents_dir = Path(data.latents_dir or output_dir / "cache" / "latents")
    with accelerator.main_process_first():
        with removed_on_error(latents_dir, cache_dir, output_dir):
            sources, left_out = ([], []) if data.are_encoded else data.make_sources(cache_dir)
            latents = (
                LatentDataset(latents_dir, vae)
                if data.are_encoded
                else plan_latents(vae, sources, latents_dir, scalar_names=data.scalar_names)
            )
            torch.manual_seed(args.seed)
            pipeline = fine_tuned(base, latents, model) if base else make_pipeline(vae, latents, model)
            check_data(latents, pipeline, args, accelerator.num_processes)
        if accelerator.is_main_process:
            measured = [] if find_checkpoint(output_dir, args.resume_from_checkpoint) else sources
            require_sound_autoencoder(vae, measured, latents_dir, ignore=model.ignore_autoencoder_report)
        encode_latents(vae, sources, latents) if sources else latents.require_complete()
    if accelerator.is_main_process:
        report(latents, left_out, pipeline, accelerator.num_processes)

    args.num_validation_volumes = max(args.num_validation_volumes, len(latents.classes))
    run_config = {"data": asdict(data), "model": asdict(model), "training": asdict(args), "command": launch_command()}
    objective = LatentDiffusionObjective(
        pipeline.scheduler,
        loss_type=model.loss_type,
        label_dropout=model.label_dropout,
        scalar_dropout=model.scalar_dropout,
    )
    inputs = validation_inputs(pipeline, list(latents.classes), args.num_validation_volumes)
    trainer = Trainer(accelerator, pipeline, "unet", objective, latents, args, run_config, inputs)
    pipeline = trainer.train()
    if accelerator.is_main_process:
        publish_run(pipeline, run_config, data=describe(data, latents), global_batch_size=trainer.global_batch_size)


def check_before_loading(data: SourceArguments, model: LatentModelArguments, args: TrainingArguments) -> None:
    if data.train_data_dir:
        require_outside(Path(args.output_dir), Path(data.train_data_dir))
    find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    if args.push_to_hub:
        require_access(args.hub_model_id)


def load_base(model: LatentModelArguments) -> PatchVolumeLDMPipeline | None:
    name = model.pretrained_model_name_or_path
    return PatchVolumeLDMPipeline.from_pretrained(resolve_model(name), dtype=torch.float32) if name else None


def load_autoencoder(folder: str) -> Autoencoder3D:
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"--vae {folder} has no config.json; give the folder of a trained autoencoder.")
    kind = Autoencoder3D.load_config(folder)["_class_name"]
    if kind not in AUTOENCODERS:
        raise ValueError(f"--vae {folder} holds a {kind}; give one of {', '.join(AUTOENCODERS)}.")
    return getattr(voxdiff, kind).from_pretrained(folder)


def make_pipeline(vae: Autoencoder3D, latents: LatentDataset, model: LatentModelArguments) -> PatchVolumeLDMPipeline:
    # The codebook bounds the latents; those of the KL autoencoder have no bounds.
    clip_latents = "latent_min" in vae.config
    unet = model.make_unet(
        channels=vae.config["latent_channels"],
        compression=vae.compression,
        num_classes=len(latents.classes),
        scalar_conditions=latents.scalar_conditions(),
    )
    return assembled(vae, unet, model.make_scheduler(clip_latents), latents, clip_latents)


def fine_tuned(
    base: PatchVolumeLDMPipeline, latents: LatentDataset, model: LatentModelArguments
) -> PatchVolumeLDMPipeline:
    """The pretrained parts for these latents; other classes than the base's get a new class table."""
    require_same_conditions(base, latents, model)
    known = {name: entry.id for name, entry in base.volume_classes.items() if name in latents.classes}
    if latents.classes and (known != latents.classes or base.unet.config["num_class_embeds"] > len(known)):
        new = [name for name in latents.classes if name not in known]
        print(f"class table: {', '.join(known) or 'none'} kept, {', '.join(new) or 'none'} new")
        kept = {latents.classes[name]: label for name, label in known.items()}
        base.unet.reset_class_embedding(len(latents.classes), kept=kept)
    return assembled(base.vae, base.unet, base.scheduler, latents, base.config["clip_latents"])


def require_same_conditions(base: PatchVolumeLDMPipeline, latents: LatentDataset, model: LatentModelArguments) -> None:
    """Raise ValueError unless the base takes the data's kinds of conditions and was trained with what is dropped."""
    name = model.pretrained_model_name_or_path
    if sorted(base.scalar_names) != sorted(latents.scalar_names) or bool(base.volume_classes) != bool(latents.classes):
        raise ValueError(
            f"{name} has {'classes' if base.volume_classes else 'no classes'} and the scalars {base.scalar_names}, the "
            f"data have {'classes' if latents.classes else 'no classes'} and {latents.scalar_names}; give data with the "
            "same kinds of conditions."
        )
    if base.scalar_names != latents.scalar_names:
        raise ValueError(
            f"{name} has its scalars in another order than the data; give --scalar_columns {','.join(base.scalar_names)}."
        )
    for option, trained in (("label_dropout", base.null_condition), ("scalar_dropout", base.optional_scalars)):
        if getattr(model, option) and not trained:
            raise ValueError(
                f"{name} was trained without --{option}, so it cannot be fine-tuned with it; leave it out."
            )


def assembled(
    vae: Autoencoder3D, unet: ModelMixin, scheduler: Any, latents: LatentDataset, clip_latents: bool
) -> PatchVolumeLDMPipeline:
    processor = latents.processors[0][1].to_dict()
    return PatchVolumeLDMPipeline(
        vae, unet, scheduler, processor=processor, classes=class_table(latents) or None, clip_latents=clip_latents
    )


def class_table(latents: LatentDataset) -> dict[str, dict[str, Any]]:
    """Class -> label, grid, spacing and intensity rule; a grid of another spacing than the class's is an entry too."""
    table: dict[str, dict[str, Any]] = {}
    for name, processor in latents.processors:
        if name is None:
            return {}
        # None stays: without a key a class has what the pipeline's processor, that of the first class, says.
        entry = {key: value for key, value in processor.to_dict().items() if key != "value_range"}
        entry["id"] = latents.classes[name]
        if latents.scalar_names:
            entry["scalars"] = latents.scalar_ranges(name)
        if name not in table:
            table[name] = entry
        elif table[name]["spacing"] != entry["spacing"]:
            table[f"{name}-{'x'.join(map(str, entry['size']))}"] = entry
    return table


def check_data(
    latents: LatentDataset, pipeline: PatchVolumeLDMPipeline, args: TrainingArguments, num_processes: int
) -> None:
    """Raise ValueError if the network cannot be trained on these latents."""
    for _, processor in latents.processors:
        pipeline.check_grid(processor.size, pipeline.size_divisor)
    if latents.has_absent_scalars and not pipeline.optional_scalars:
        raise ValueError(
            "Some volumes lack a scalar, which only a model trained with absent scalars can take; give --scalar_dropout, "
            "such as 0.1."
        )
    batch, smallest = args.train_batch_size * num_processes, min(map(len, latents.buckets))
    if smallest < batch:
        raise ValueError(
            f"A grid has {smallest} volumes, fewer than a batch of {batch}; add volumes or lower --train_batch_size."
        )


class ReportedVolumes(Sequence[torch.Tensor]):
    """A few volumes of every source, spread over it."""

    def __init__(self, sources: Sequence[VolumeSource]) -> None:
        self.places = [
            (source, place)
            for source in sources
            for place in range(0, len(source), -(-len(source) // REPORTED_VOLUMES))
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):
        source, place = self.places[index]
        return source.volume(place)


def require_sound_autoencoder(
    vae: Autoencoder3D, sources: Sequence[VolumeSource], folder: Path, *, ignore: bool
) -> None:
    """Measure the autoencoder on some of the volumes, or read what was measured; raise ValueError if it is broken."""
    if ignore and not sources:
        return
    volumes = ReportedVolumes(sources)
    findings = write_autoencoder_report(vae, volumes, folder) if sources else read_autoencoder_report(folder)
    psnr = f"PSNR {findings['psnr']:.2f} dB on {findings['volumes']} volumes"
    require_sound(check_autoencoder(findings), psnr, folder, ignore=ignore)


def validation_inputs(pipeline: PatchVolumeLDMPipeline, classes: list[str], count: int) -> dict[str, Any]:
    """Each class in turn on one grid, at the mean of the scalars unless they may be left out."""
    inputs: dict[str, Any] = {}
    if classes:
        inputs["class_labels"] = [classes[place % len(classes)] for place in range(count)]
        inputs["size"] = pipeline.volume_processor.size
    if pipeline.scalar_names and not pipeline.optional_scalars:
        inputs["scalars"] = {name: entry["mean"] for name, entry in pipeline.unet.config["scalar_conditions"].items()}
    return inputs


def report(latents: LatentDataset, left_out: list[str], pipeline: PatchVolumeLDMPipeline, processes: int) -> None:
    for problem in left_out:
        print(f"left out: {problem}")
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    grids = f"{len(latents.buckets)} grid(s) of {', '.join(str(len(bucket)) for bucket in latents.buckets)}"
    print(
        f"{len(latents)} latents on {grids}, {parameters / 1e6:.2f} M parameters, {processes} process(es)", flush=True
    )


def describe(data: SourceArguments, latents: LatentDataset) -> str:
    """What the model card says of the data."""
    grids = dict.fromkeys(" x ".join(map(str, processor.size)) for _, processor in latents.processors)
    volumes = f"{len(latents)} latents of volumes on {' and '.join(grids)},"
    if data.cohort is not None:
        return f"{volumes} from voxdiff's simulated cohort ({data.cohort}); no real patient is in it"
    return f"{volumes} from the folder `{Path(data.train_data_dir or data.latents_dir or '').resolve().name}`"


if __name__ == "__main__":
    with one_sentence_errors():
        main()
