"""Train a cohort extractor: a small network whose features describe simulated subjects, for `voxdiff evaluate`.

    python training_scripts/train_cohort_extractors.py --name cohort-3d --output_dir runs/cohort-3d

The network sees subjects of the digital cohort (T1w, T1Gd, T2w, FLAIR, with and without tumours; CT), each under a random
blur, noise and change of intensity, and learns three things at once: the joint class of contrast, template and lesion; the
subject's known volumes; and how strongly each degradation was applied. Its subjects come from a range of training seeds
that no generator uses by default (from 5,000,000), so that its features know neither a generator's training subjects nor
the test subjects. A killed run goes on from its last checkpoint to the same result. Writes the folder of a model card's
weights, `config.json` and `model.safetensors`, and `training.json` with what it reaches on test subjects.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import nn

from voxdiff.data.cohort import CohortDataset
from voxdiff.metrics.extractors.cohort import NAMES, CohortEncoder
from voxdiff.small_convolutions import small_convolutions_in_float32
from voxdiff.volumes import atomic_path

SIZE = 64
CONTRASTS = ("t1", "t1gd", "t2", "flair")
TEMPLATES = ("mni152", "colin27")
CLASSES = [f"{c} {t} {lesion}" for c in CONTRASTS for t in TEMPLATES for lesion in ("healthy", "tumour")] + ["ct"]
FACTORS = (
    *("brain_volume_ml", "csf_ml", "gm_ml", "wm_ml", "ventricle_volume_ml", "ventricle_mm", "lesion_volume_ml"),
    *("lesion_x_mm", "lesion_y_mm", "lesion_z_mm"),
    *("body_volume_ml", "liver_ml", "spleen_ml", "kidney_ml", "bone_ml", "muscle_ml", "liver_shift_hu", "bone_density"),
)
DEGRADATIONS = ("blur", "noise", "gain", "gamma")
FIRST_SEED = {"healthy": 5_100_000, "tumour": 5_000_000, "ct": 5_000_000}
CT_WINDOW_HU = (-1000.0, 1000.0)
DEGRADATION_WEIGHT = 10.0  # they vary ten times less than the standardised factors


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    spatial_dims = int(args.name[-2])
    encoder = CohortEncoder(spatial_dims, args.widths, len(CLASSES))
    model = nn.ModuleDict(
        {"encoder": encoder, "regressor": nn.Linear(sum(args.widths), len(FACTORS) + len(DEGRADATIONS))}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=1e-3)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    model, optimizer = accelerator.prepare(model, optimizer)
    train = Subjects("train", args.num_subjects, args.cache_dir)
    test = Subjects("test", args.num_test_subjects, args.cache_dir, like=train)

    checkpoint, first_step = args.output_dir / "checkpoint", 0
    if (checkpoint / "step.json").is_file():
        accelerator.load_state(str(checkpoint))
        first_step = json.loads((checkpoint / "step.json").read_text(encoding="utf-8"))["step"]
    started = time.perf_counter()
    model.train()
    for step in range(first_step, args.max_train_steps):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * schedule(step, args.max_train_steps)
        batch = train.batch(np.random.default_rng([args.seed, step]), args.train_batch_size, spatial_dims)
        loss, parts = objective(model, batch, accelerator)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            rate = (time.perf_counter() - started) / (step + 1 - first_step)
            print(f"step {step + 1}: {parts}, {rate:.2f} s a step", flush=True)
        if (step + 1) % args.checkpointing_steps == 0:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            with atomic_path(checkpoint) as temporary:
                accelerator.save_state(str(temporary))
                (temporary / "step.json").write_text(json.dumps({"step": step + 1}), encoding="utf-8")

    results = evaluate(model.eval(), test, spatial_dims, accelerator)
    save(accelerator.unwrap_model(model)["encoder"], args, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", choices=NAMES, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", help="channels of each level")
    parser.add_argument("--num_subjects", type=int, default=700, help="healthy, as many with tumours, 4/7 of it CT")
    parser.add_argument("--num_test_subjects", type=int, default=140)
    parser.add_argument("--train_batch_size", type=int, default=32)
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--mixed_precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--cache_dir", type=Path, default=Path("outputs/cohort"), help="where subjects are kept")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.widths = args.widths or [16, 32, 48, 96]
    return args


class Subjects:
    """Subjects in memory, and what is known of them, scaled to mean 0 and standard deviation 1 over those that have it."""

    def __init__(self, split: str, number: int, cache_dir: Path, like: "Subjects | None" = None) -> None:
        self.images: list[torch.Tensor] = []
        self.lesions: list[torch.Tensor | None] = []
        self.contrasts: list[str] = []
        self.templates: list[str] = []
        rows = []
        for kind in ("healthy", "tumour", "ct"):
            settings = {"modality": "ct"} if kind == "ct" else {"contrasts": CONTRASTS, "lesions": kind == "tumour"}
            subjects = CohortDataset(
                number * 4 // 7 if kind == "ct" else number,
                split=split,
                seed=FIRST_SEED[kind],
                size=SIZE,
                cache_dir=cache_dir,
                cache=False,
                **settings,
            )
            for subject in subjects:
                for contrast in ("ct",) if kind == "ct" else CONTRASTS:
                    self.images.append(subject[contrast][0].half())
                    self.lesions.append(subject["lesion"][0] > 0 if kind == "tumour" else None)
                    self.contrasts.append(contrast)
                    self.templates.append(subject["factors"]["template"])
                    rows.append([float(subject["factors"].get(name, math.nan)) for name in FACTORS])
        table = torch.tensor(rows)
        if like is None:
            self.mean = table.nanmean(0)
            self.std = (table - self.mean).square().nanmean(0).sqrt()
        else:
            self.mean, self.std = like.mean, like.std
        self.factors = (table - self.mean) / self.std

    def batch(
        self, random: np.random.Generator, size: int, spatial_dims: int, degrade: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (batch, 1, …) in [0, 1], classes (batch,), and targets (batch, factors and degradations, NaN: none)."""
        chosen = random.choice(len(self.images), size, replace=False)
        images, classes, targets = [], [], []
        for index in chosen.tolist():
            image, tumour = self.images[index].float(), self.lesions[index]
            has_tumour = tumour is not None
            if self.contrasts[index] == "ct":
                low, high = CT_WINDOW_HU
                image = ((image - low) / (high - low)).clamp(0, 1)
            if spatial_dims == 2:
                axis, place = int(random.integers(3)), int(random.integers(8, SIZE - 8))
                image = image.select(axis, place)
                has_tumour = has_tumour and int(tumour.select(axis, place).sum()) >= 8
            image, applied = apply_degradations(image, random) if degrade else (image, [math.nan] * 4)
            images.append(image)
            classes.append(self.class_index(index, has_tumour))
            targets.append(torch.cat([self.factors[index], torch.tensor(applied)]))
        return torch.stack(images)[:, None], torch.tensor(classes), torch.stack(targets)

    def class_index(self, index: int, has_tumour: bool) -> int:
        """Place of an image's joint class in `CLASSES`."""
        if self.contrasts[index] == "ct":
            return len(CLASSES) - 1
        lesion = "tumour" if has_tumour else "healthy"
        return CLASSES.index(f"{self.contrasts[index]} {self.templates[index]} {lesion}")


def apply_degradations(image: torch.Tensor, random: np.random.Generator) -> tuple[torch.Tensor, list[float]]:
    """Blur, gain, gamma and noise, each half of the time; and how much of each, roughly from 0 to 1 or -1 to 1."""
    blur, noise, gain, gamma = random.random(4) < 0.5
    sigma = float(random.uniform(0.3, 1.5)) if blur else 0.0
    log_gain = float(random.uniform(-0.25, 0.25)) if gain else 0.0
    log_gamma = float(random.uniform(-0.35, 0.35)) if gamma else 0.0
    level = float(np.exp(random.uniform(math.log(0.01), math.log(0.1)))) if noise else 0.0
    seed = int(random.integers(2**31))
    if sigma:
        image = gaussian_blur(image, sigma)
    image = (image.clamp(0, 1) ** math.exp(log_gamma) * math.exp(log_gain)).clamp(0, 1)
    if level:
        disturbance = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        image = (image + level * disturbance).clamp(0, 1)
    return image, [sigma / 1.5, math.log1p(level / 0.01) / math.log(11), log_gain / 0.25, log_gamma / 0.35]


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable blur of an image (…) of any rank."""
    offsets = torch.arange(-5.0, 6.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(image.ndim):
        lines = image.movedim(axis, -1)
        blurred = F.conv1d(F.pad(lines.reshape(-1, 1, lines.shape[-1]), (5, 5), mode="replicate"), kernel)
        image = blurred.reshape(lines.shape).movedim(-1, axis)
    return image


def schedule(step: int, total: int, warmup: int = 100) -> float:
    """Linear warm-up, cosine decay."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def objective(
    model: nn.ModuleDict, batch: tuple[torch.Tensor, ...], accelerator: Accelerator
) -> tuple[torch.Tensor, str]:
    images, classes, targets = (item.to(accelerator.device) for item in batch)
    if images.ndim == 5:
        images = images.contiguous(memory_format=torch.channels_last_3d)
    with accelerator.autocast(), small_convolutions_in_float32(model):
        features, logits = model["encoder"](images)
        predicted = model["regressor"](features)
    cross_entropy = F.cross_entropy(logits.float(), classes, label_smoothing=0.05)
    known = ~targets.isnan()
    errors = F.smooth_l1_loss(predicted.float(), targets.nan_to_num(), reduction="none") * known
    degradations = errors[:, len(FACTORS) :].mean()
    factors = errors[:, : len(FACTORS)].sum() / known[:, : len(FACTORS)].sum()
    parts = f"classes {cross_entropy.item():.3f}, factors {factors.item():.3f}, degradations {degradations.item():.4f}"
    return cross_entropy + factors + DEGRADATION_WEIGHT * degradations, parts


@torch.no_grad()
def evaluate(model: nn.ModuleDict, subjects: Subjects, spatial_dims: int, accelerator: Accelerator) -> dict:
    """Accuracy of the class, and the share of each factor's variance that is explained, on test subjects."""
    random = np.random.default_rng(0)
    hits, predictions, wanted = [], [], []
    for _ in range(24):
        images, classes, targets = subjects.batch(random, 64, spatial_dims)
        features, logits = model["encoder"](images.to(accelerator.device))
        hits.append((logits.argmax(1).cpu() == classes).float())
        predictions.append(model["regressor"](features).cpu())
        wanted.append(targets)
    predicted, target = torch.cat(predictions), torch.cat(wanted)
    explained = {}
    for index, name in enumerate((*FACTORS, *DEGRADATIONS)):
        known = ~target[:, index].isnan()
        residual = (predicted[known, index] - target[known, index]).square().mean()
        explained[name] = round(float(1 - residual / target[known, index].var(unbiased=False)), 3)
    return {"accuracy": round(float(torch.cat(hits).mean()), 4), "explained_variance": explained}


def save(encoder: CohortEncoder, args: argparse.Namespace, results: dict) -> None:
    """The encoder in 16 bits with its config, and what it reached."""
    spatial_dims = int(args.name[-2])
    config = {
        "spatial_dims": spatial_dims,
        "widths": args.widths,
        "input_size": [SIZE] * spatial_dims,
        "classes": CLASSES,
    }
    weights = {key: value.detach().cpu().half().contiguous() for key, value in encoder.state_dict().items()}
    record = {**results, "steps": args.max_train_steps, "batch_size": args.train_batch_size, "seed": args.seed}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.output_dir / "model.safetensors") as temporary:
        save_file(weights, temporary)
    for name, content in (("config.json", config), ("training.json", record)):
        with atomic_path(args.output_dir / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
