"""Train WaveletDiffusionPipeline (WDM; with --condition_columns cWDM; with --wavelet none the plain 3D DDPM).

    accelerate launch training_scripts/train_wavelet_diffusion.py --train_data_dir DIR --resolution 128 --output_dir OUT
    accelerate launch training_scripts/train_wavelet_diffusion.py --cohort mr --resolution 64 --output_dir OUT
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import HfArgumentParser

from voxdiff.data.anatomy import BRAIN_FOV_MM
from voxdiff.data.cohort import CohortDataset
from voxdiff.data.ct_anatomy import CT_FOV_MM
from voxdiff.data.volume_dataset import VolumeDataset, find_subjects
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.pipelines.pipeline_wavelet_diffusion import WaveletDiffusionPipeline
from voxdiff.schedulers import make_scheduler
from voxdiff.training import Trainer, TrainingArguments, make_accelerator
from voxdiff.training.arguments import option
from voxdiff.training.objective_wavelet import WaveletDiffusionObjective
from voxdiff.volumes import VolumeProcessor, atomic_path
from voxdiff.wavelets import BAND_NAMES, WaveletTransform

COHORTS = {
    "mr": ({"low": 0.0, "high": 1.0, "unit": "a.u."}, BRAIN_FOV_MM),
    "ct": ({"low": -1000.0, "high": 1000.0, "unit": "HU"}, CT_FOV_MM),
}
"""Modality of the digital cohort -> intensity window and field of view in mm."""


@dataclass
class DataArguments:
    """Which volumes are learnt, and how they are brought to the network's grid and range."""

    train_data_dir: str | None = option(None, "Folder of NIfTI files, or a niftifolder data set with metadata.csv.")
    split: str = option("train", "Split of a niftifolder data set, or of the cohort.")
    cohort: str | None = option(None, "Train on the simulated digital cohort instead: mr or ct.")
    num_subjects: int = option(1000, "Subjects of the cohort.")
    image_columns: str = option("", "Volumes to generate, comma-separated; default: image (cohort: t1 or ct).")
    condition_columns: str = option("", "Volumes the result is conditioned on (paired translation).")
    label_columns: str = option("", "Which of the generated volumes are label maps, with their highest label: lesion=3.")
    resolution: str = option("", "Grid of the volumes: one number or x,y,z; default: as they are.")
    spacing: str = option("", "Voxel size in mm: one number or x,y,z; default: as it is.")
    intensity: str = option("percentile", "percentile (MR), window (CT) or minmax.")
    low: float | None = option(None, "Lower percentile, or lower end of the window in HU.")
    high: float | None = option(None, "Upper percentile, or upper end of the window in HU.")
    unit: str | None = option(None, "State HU for CT volumes whose lowest value is not negative.")
    skip_bad_files: bool = option(False, "Train without the volumes that cannot be read.")
    cache_dir: str | None = option(None, "Where prepared volumes are kept; default: OUTPUT_DIR/cache.")


@dataclass
class ModelArguments:
    """The network and the diffusion; published WDM settings unless changed."""

    pretrained_model_name_or_path: str | None = option(None, "Start from this pipeline's weights and configuration.")
    block_out_channels: str = option("64,128,128,256,256", "Width of each level.")
    layers_per_block: int = option(2, "Residual blocks per level.")
    norm_num_groups: int = option(32, "Groups of the group norms.")
    skip_mode: str = option("", "additive or concat; default: as published, concat with conditions.")
    wavelet: str = option("haar", "haar, or none for voxel space.")
    band_scales: str = option("3,1,1,1,1,1,1,1", "Divisor of each band, " + " ".join(BAND_NAMES) + ".")
    prediction_type: str = option("sample", "sample, epsilon, v_prediction, or flow.")
    scheduler: str = option("wdm-dpm++", "Scheduler preset saved with the pipeline.")


def main() -> None:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments), description=__doc__)
    data, model, training = parser.parse_args_into_dataclasses()
    torch.manual_seed(training.seed)
    run_config = {"data": asdict(data), "model": asdict(model), "training": asdict(training)}

    accelerator = make_accelerator(training)
    pipeline = build_pipeline(data, model)
    with accelerator.main_process_first():
        dataset = build_dataset(data, pipeline, Path(data.cache_dir or Path(training.output_dir) / "cache"))
    if accelerator.is_main_process:
        save_run_config(Path(training.output_dir), run_config)
        parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
        print(f"{len(dataset)} subjects, {parameters / 1e6:.2f} M parameters, {accelerator.num_processes} process(es)")
    objective = WaveletDiffusionObjective(pipeline)
    Trainer(accelerator, pipeline, "unet", objective, dataset, training, run_config).train()


def build_pipeline(data: DataArguments, model: ModelArguments) -> WaveletDiffusionPipeline:
    if model.pretrained_model_name_or_path:
        return WaveletDiffusionPipeline.from_pretrained(model.pretrained_model_name_or_path)
    outputs = names(data.image_columns) or [{"mr": "t1", "ct": "ct"}.get(data.cohort or "", "image")]
    conditions = names(data.condition_columns)
    wavelet = None if model.wavelet == "none" else model.wavelet
    channels = WaveletTransform(wavelet).channels_per_volume
    unet = WaveletUNet3DModel(
        in_channels=channels * (len(outputs) + len(conditions)),
        out_channels=channels * len(outputs),
        block_out_channels=tuple(numbers(model.block_out_channels, int)),
        layers_per_block=model.layers_per_block,
        skip_mode=model.skip_mode or ("concat" if conditions else "additive"),
        norm_num_groups=model.norm_num_groups,
    )
    labels = dict(item.split("=") for item in names(data.label_columns))
    return WaveletDiffusionPipeline(
        unet,
        build_scheduler(model),
        processor=build_processor(data).to_dict(),
        wavelet=wavelet,
        band_scales=numbers(model.band_scales, float),
        output_volumes={name: place for place, name in enumerate(outputs)},
        condition_volumes={name: place for place, name in enumerate(conditions)},
        label_volumes={name: int(highest) for name, highest in labels.items()},
    )


def build_scheduler(model: ModelArguments):
    if model.prediction_type == "flow":
        return make_scheduler("flow-matching")
    return make_scheduler(model.scheduler, prediction_type=model.prediction_type)


def build_processor(data: DataArguments) -> VolumeProcessor:
    size, spacing = triple(data.resolution, int), triple(data.spacing, float)
    if data.cohort is None:
        return VolumeProcessor(size=size, spacing=spacing, intensity=data.intensity, low=data.low, high=data.high)
    if size is None or len(set(size)) > 1:
        raise SystemExit(f"The cohort is drawn on cubes, --resolution is {data.resolution!r}; give one number, such as 64.")
    window, field_of_view = COHORTS[data.cohort]
    return VolumeProcessor(size=size, spacing=(field_of_view / size[0],) * 3, intensity="window", **window)


def build_dataset(data: DataArguments, pipeline: WaveletDiffusionPipeline, cache_dir: Path) -> VolumeDataset:
    columns = pipeline.output_names + pipeline.condition_names
    processors = {name: pipeline.processor_of(name) for name in columns}
    if data.cohort:
        contrasts = tuple(name for name in columns if name not in ("lesion", "tissue", "ct"))
        cohort = CohortDataset(
            data.num_subjects,
            split=data.split,
            size=pipeline.volume_processor.size[0],
            contrasts=contrasts or ("t1",),
            lesions="lesion" in columns,
            modality=data.cohort,
            cache_dir=cache_dir,
        )
        return VolumeDataset(cohort, processors, unit="HU" if data.cohort == "ct" else None)
    if not data.train_data_dir:
        raise SystemExit("No data: give --train_data_dir DIR with NIfTI files, or --cohort mr for the simulated cohort.")
    dataset = VolumeDataset(
        find_subjects(data.train_data_dir, columns, split=data.split), processors, cache_dir=cache_dir, unit=data.unit
    )
    for problem in dataset.check(skip_bad_files=data.skip_bad_files):
        print(f"left out: {problem}")
    return dataset


def save_run_config(output_dir: Path, run_config: dict) -> None:
    output_dir.mkdir(parents=True, exist_ok=True)
    with atomic_path(output_dir / "run.json") as temporary:
        Path(temporary).write_text(json.dumps(run_config, indent=2), encoding="utf-8")


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str, kind: type) -> list:
    return [kind(item) for item in names(text)]


def triple(text: str, kind: type) -> tuple | None:
    values = numbers(text, kind)
    if len(values) not in (0, 1, 3):
        raise SystemExit(f"{text!r} is neither one number nor three (x,y,z).")
    return tuple(values * 3 if len(values) == 1 else values) or None


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
