"""Train SliceConditionedPipeline: slices of a volume from any others (cDPM).

accelerate launch training_scripts/train_slice_conditioned.py --train_data_dir DIR --resolution 128 --output_dir OUT
accelerate launch training_scripts/train_slice_conditioned.py --cohort mr --resolution 64 \\
    --block_out_channels 64,128,192,256 --output_dir OUT
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import HfArgumentParser

from voxdiff.data.volume_dataset import VolumeDataset
from voxdiff.hub.publish import require_access
from voxdiff.hub.registry import resolve_model
from voxdiff.pipelines.pipeline_slice_conditioned import SliceConditionedPipeline
from voxdiff.training import DataArguments, Trainer, TrainingArguments, make_accelerator
from voxdiff.training.checkpoints import find_checkpoint
from voxdiff.training.data_arguments import refuse
from voxdiff.training.objective_slice_conditioned import SliceConditionedObjective
from voxdiff.training.script import launch_command, one_sentence_errors, removed_on_error, require_outside
from voxdiff.training.slice_conditioned_arguments import PUBLISHED_BATCH_SIZE, SliceConditionedArguments
from voxdiff.training.slice_index_sampler import SliceIndexSampler
from voxdiff.volumes import VolumeProcessor
from voxdiff.workflows.publish_run import publish_run


def main() -> None:
    parser = HfArgumentParser((DataArguments, SliceConditionedArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(channels_last=False, train_batch_size=PUBLISHED_BATCH_SIZE)
    data, model, args = parser.parse_args_into_dataclasses()
    output_dir = Path(args.output_dir)
    check_before_loading(data, model, args)

    torch.manual_seed(args.seed)
    accelerator = make_accelerator(args)
    start = load_pipeline(model) if model.pretrained_model_name_or_path else None
    column = data.volume_names[0][0]
    processor = start.volume_processor if start else data.make_processor()
    cache_dir = Path(data.cache_dir or output_dir / "cache")
    with removed_on_error(cache_dir, output_dir), accelerator.main_process_first():
        dataset = data.make_dataset({column: processor}, cache_dir)
        left_out = dataset.check(skip_bad_files=data.skip_bad_files) if data.train_data_dir else []
        if data.train_data_dir:
            processor = with_grid(processor, dataset)
        pipeline = with_processor(start, processor) if start else make_pipeline(model, processor)
        check_grid(pipeline)
    if accelerator.is_main_process:
        report(dataset, left_out, pipeline, accelerator.num_processes)

    run_config = {"data": asdict(data), "model": asdict(model), "training": asdict(args), "command": launch_command()}
    objective = SliceConditionedObjective(
        pipeline.scheduler,
        SliceIndexSampler(
            max_slices=pipeline.config["max_slices"],
            seed=args.seed,
            observed_share=model.observed_share,
            gap_share=model.gap_share,
            comb_share=model.comb_share,
        ),
        slice_axis=pipeline.config["slice_axis"],
        column=column,
    )
    trainer = Trainer(accelerator, pipeline, "unet", objective, dataset, args, run_config)
    pipeline = trainer.train()
    if accelerator.is_main_process:
        publish_run(pipeline, run_config, data=data.describe(len(dataset)), global_batch_size=trainer.global_batch_size)


def check_before_loading(data: DataArguments, model: SliceConditionedArguments, args: TrainingArguments) -> None:
    refuse(data, ("condition_columns", "label_columns"), "belongs to wavelet diffusion, slices are of one volume")
    if len(data.volume_names[0]) > 1:
        raise ValueError(f"--image_columns is {data.image_columns!r}; name one volume, whose slices are learnt.")
    if args.channels_last:
        raise ValueError("--channels_last is a layout of 3D networks; leave it out.")
    if model.pretrained_model_name_or_path:
        replace(data, image_columns=None).require_no_model_options()  # the volume's name is no part of the model
    if data.train_data_dir:
        require_outside(Path(args.output_dir), Path(data.train_data_dir))
    find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint)
    if args.push_to_hub:
        require_access(args.hub_model_id)


def load_pipeline(model: SliceConditionedArguments) -> SliceConditionedPipeline:
    name = resolve_model(model.pretrained_model_name_or_path)
    loaded = SliceConditionedPipeline.from_pretrained(name, dtype=torch.float32)
    return with_processor(loaded, loaded.volume_processor)


def make_pipeline(model: SliceConditionedArguments, processor: VolumeProcessor) -> SliceConditionedPipeline:
    half = model.number_of_slices // 2
    return SliceConditionedPipeline(
        model.make_unet(processor.size[model.axis]),
        model.make_scheduler(),
        processor=processor.to_dict(),
        slice_axis=model.axis,
        stage_size=half,
        context_size=model.number_of_slices - half,
        max_slices=model.number_of_slices,
    )


def with_grid(processor: VolumeProcessor, dataset: VolumeDataset) -> VolumeProcessor:
    """The processor with the data's own grid and voxel size, where none was asked for."""
    return replace(processor, size=processor.size or dataset.grid, spacing=processor.spacing or dataset.spacing)


def with_processor(pipeline: SliceConditionedPipeline, processor: VolumeProcessor) -> SliceConditionedPipeline:
    """The same components and configuration with another processor, and without a record of where they came from."""
    config = {key: pipeline.config[key] for key in pipeline.config if key not in pipeline.components and key[0] != "_"}
    return SliceConditionedPipeline(**pipeline.components, **{**config, "processor": processor.to_dict()})


def check_grid(pipeline: SliceConditionedPipeline) -> None:
    size, axis, divisor = pipeline.volume_processor.size, pipeline.config["slice_axis"], pipeline.unet.size_divisor
    if size is not None and any(count % divisor for place, count in enumerate(size) if place != axis):
        raise ValueError(
            f"The grid is {size}, but this network needs the sides of a slice divisible by {divisor}; give such a "
            "--resolution, or fewer --block_out_channels."
        )


def report(dataset: VolumeDataset, left_out: list[str], pipeline: SliceConditionedPipeline, processes: int) -> None:
    for problem in left_out:
        print(f"left out: {problem}")
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    print(f"{len(dataset)} subjects, {parameters / 1e6:.2f} M parameters, {processes} process(es)", flush=True)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
