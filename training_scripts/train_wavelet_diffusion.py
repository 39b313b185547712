"""Train WaveletDiffusionPipeline: WDM; with --condition_columns cWDM; with --wavelet none the plain 3D DDPM.

accelerate launch training_scripts/train_wavelet_diffusion.py --train_data_dir DIR --resolution 128 --output_dir OUT
accelerate launch training_scripts/train_wavelet_diffusion.py --cohort mr --resolution 64 --output_dir OUT
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import HfArgumentParser

from voxdiff.data.volume_dataset import VolumeDataset
from voxdiff.hub.publish import require_access
from voxdiff.hub.registry import resolve_model
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline
from voxdiff.schedulers import make_scheduler
from voxdiff.training import DataArguments, Trainer, TrainingArguments, make_accelerator
from voxdiff.training.arguments import option
from voxdiff.training.checkpoints import find_checkpoint
from voxdiff.training.data_arguments import numbers, refuse
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective
from voxdiff.training.script import launch_command, one_sentence_errors, removed_on_error, require_outside
from voxdiff.volumes import VolumeProcessor
from voxdiff.wavelets import BAND_NAMES, WaveletTransform
from voxdiff.workflows.publish_run import publish_run

PREDICTION_TYPES = ("sample", "epsilon", "v_prediction", "flow")


@dataclass
class ModelArguments:
    """The network and the diffusion; published WDM settings unless given."""

    pretrained_model_name_or_path: str | None = option(None, "Start from this pipeline's weights and configuration.")
    block_out_channels: str | None = option(None, "Width of each level; default: 64,128,128,256,256.")
    layers_per_block: int | None = option(None, "Residual blocks per level; default: 2.")
    norm_num_groups: int | None = option(None, "Groups of the group norms; default: 32.")
    skip_mode: str | None = option(None, "additive or concat; default: as published, concat with conditions.")
    wavelet: str | None = option(None, "haar (default), or none for voxel space.")
    band_scales: str | None = option(None, f"Divisor of each band, {' '.join(BAND_NAMES)}; default: 3,1,1,1,1,1,1,1.")
    prediction_type: str | None = option(None, ", ".join(PREDICTION_TYPES) + "; default: sample.")
    scheduler: str | None = option(
        None, "Scheduler preset saved with the pipeline; default: wdm-dpm++ (flow-matching for flow)."
    )

    def __post_init__(self) -> None:
        if self.pretrained_model_name_or_path is not None:
            decided = [name for name in asdict(self) if name != "pretrained_model_name_or_path"]
            refuse(self, decided, "comes from the pretrained model")
        if self.wavelet == "none":
            refuse(self, ["band_scales"], "belongs to --wavelet haar")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise ValueError(
                f"--prediction_type is {self.prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}."
            )
        is_flow = self.prediction_type == "flow"
        if self.scheduler is not None and is_flow != (self.scheduler == "flow-matching"):
            raise ValueError("--scheduler flow-matching and --prediction_type flow go together.")

    def make_scheduler(self):
        """The scheduler that is saved with the pipeline."""
        if self.prediction_type == "flow":
            return make_scheduler("flow-matching")
        return make_scheduler(self.scheduler or "wdm-dpm++", prediction_type=self.prediction_type or "sample")


def main() -> None:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments), description=__doc__)
    data, model, args = parser.parse_args_into_dataclasses()
    output_dir = Path(args.output_dir)
    check_before_loading(data, model, args)

    torch.manual_seed(args.seed)
    accelerator = make_accelerator(args)
    pipeline = load_pipeline(model) if model.pretrained_model_name_or_path else make_pipeline(data, model)
    check_grid(pipeline)
    cache_dir = Path(data.cache_dir or output_dir / "cache")
    with removed_on_error(cache_dir, output_dir), accelerator.main_process_first():
        columns = pipeline.output_names + pipeline.condition_names
        dataset = data.make_dataset({name: pipeline.processor_of(name) for name in columns}, cache_dir)
        left_out = dataset.check(skip_bad_files=data.skip_bad_files) if data.train_data_dir else []
        if data.train_data_dir:
            pipeline = with_grid(pipeline, dataset.grid, dataset.spacing)
            check_grid(pipeline)
    if accelerator.is_main_process:
        report(dataset, left_out, pipeline, accelerator.num_processes)

    run_config = {"data": asdict(data), "model": asdict(model), "training": asdict(args), "command": launch_command()}
    inputs = validation_inputs(pipeline, dataset, args.num_validation_volumes, data.known_unit)
    objective = WaveletDiffusionObjective(pipeline)
    trainer = Trainer(accelerator, pipeline, "unet", objective, dataset, args, run_config, inputs)
    pipeline = trainer.train()
    if accelerator.is_main_process:
        publish_run(pipeline, run_config, data=data.describe(len(dataset)), global_batch_size=trainer.global_batch_size)


def check_before_loading(data: DataArguments, model: ModelArguments, args: TrainingArguments) -> None:
    if model.pretrained_model_name_or_path:
        data.require_no_model_options()
    if data.train_data_dir:
        require_outside(Path(args.output_dir), Path(data.train_data_dir))
    find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    if args.push_to_hub:
        require_access(args.hub_model_id)


def load_pipeline(model: ModelArguments) -> WaveletDiffusionPipeline:
    loaded = WaveletDiffusionPipeline.from_pretrained(
        resolve_model(model.pretrained_model_name_or_path), dtype=torch.float32
    )
    return rebuilt(loaded, loaded.volume_processor)


def make_pipeline(data: DataArguments, model: ModelArguments) -> WaveletDiffusionPipeline:
    (outputs, conditions), labels = data.volume_names, data.labels
    wavelet = None if model.wavelet == "none" else model.wavelet or "haar"
    transform = {"band_scales": numbers("band_scales", model.band_scales, float)} if model.band_scales else {}
    channels = WaveletTransform(wavelet).channels_per_volume
    config = {"layers_per_block": model.layers_per_block, "norm_num_groups": model.norm_num_groups}
    if model.block_out_channels:
        config["block_out_channels"] = tuple(numbers("block_out_channels", model.block_out_channels, int))
    unet = WaveletUNet3DModel(
        in_channels=channels * (len(outputs) + len(conditions)),
        out_channels=channels * len(outputs),
        skip_mode=model.skip_mode or ("concat" if conditions else "additive"),
        **{name: value for name, value in config.items() if value is not None},
    )
    return WaveletDiffusionPipeline(
        unet,
        model.make_scheduler(),
        processor=data.make_processor().to_dict(),
        wavelet=wavelet,
        output_volumes={name: place for place, name in enumerate(outputs)},
        condition_volumes={name: place for place, name in enumerate(conditions)},
        label_volumes=labels,
        **transform,
    )


def with_grid(pipeline: WaveletDiffusionPipeline, grid: tuple, spacing: tuple | None) -> WaveletDiffusionPipeline:
    """The pipeline with the data's own grid and voxel size, where none was asked for."""
    processor = pipeline.volume_processor
    return rebuilt(pipeline, replace(processor, size=processor.size or grid, spacing=processor.spacing or spacing))


def rebuilt(pipeline: WaveletDiffusionPipeline, processor: VolumeProcessor) -> WaveletDiffusionPipeline:
    """The same components and configuration with another processor, and without a record of where they came from."""
    config = {key: pipeline.config[key] for key in pipeline.config if key not in pipeline.components and key[0] != "_"}
    return WaveletDiffusionPipeline(**pipeline.components, **{**config, "processor": processor.to_dict()})


def check_grid(pipeline: WaveletDiffusionPipeline) -> None:
    size, divisor = pipeline.volume_processor.size, pipeline.size_divisor
    if size is not None and any(count % divisor for count in size):
        raise ValueError(
            f"The grid is {size}, but this network needs every size divisible by {divisor}; give such a --resolution, or "
            "fewer --block_out_channels."
        )


def validation_inputs(pipeline: WaveletDiffusionPipeline, dataset: VolumeDataset, count: int, unit: str | None) -> dict:
    """A translation model is shown the conditions of the first training subjects."""
    if not pipeline.condition_names:
        return {}
    subjects = [dataset.volumes(index % len(dataset), pipeline.condition_names) for index in range(count)]
    return {"condition_volumes": subjects, "unit": unit}


def report(dataset: VolumeDataset, left_out: list[str], pipeline: WaveletDiffusionPipeline, processes: int) -> None:
    for problem in left_out:
        print(f"left out: {problem}")
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    print(f"{len(dataset)} subjects, {parameters / 1e6:.2f} M parameters, {processes} process(es)", flush=True)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
