"""The small networks that utility is judged with: a 3D U-Net that segments and a 3D ResNet that classifies (MONAI).

They are instruments, meant to be trained many times: 0.34 and 0.23 million parameters, a fixed number of steps, no
augmentation, the last step kept. Their scores compare training sets with each other, not methods with nnU-Net.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from voxdiff.small_convolutions import small_convolutions_in_float32

DTYPES = ("float32", "bfloat16")
_UNET_CHANNELS = (12, 24, 48, 96)
_RESNET_CHANNELS = (8, 16, 32, 64)
_GRID_MULTIPLE = 2 ** (len(_UNET_CHANNELS) - 1)
_SMALLEST_GRID = 2 * _GRID_MULTIPLE  # a single voxel at the coarsest level cannot be normalised
_LABELLED_PATCHES = 0.5
_WEIGHT_DECAY = 1e-2

Examples = Sequence[tuple[torch.Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a downstream network is trained; the same in every setting of an experiment.

    Attributes:
        steps: optimisation steps, whatever the number of examples.
        batch_size: examples a step.
        learning_rate: of AdamW, lowered to 0 along a cosine.
        patch_size: voxels (x, y, z) the segmentation network sees at once, multiples of 8 from 16; half of the patches are
            centred on a labelled voxel. None is the whole volume.
        device: "cpu", "cuda", ...
        dtype: "float32", or "bfloat16" for autocast. On a CPU, runs with the same number of threads are bitwise equal.

    Raises:
        ValueError: a value is out of range.
    """

    steps: int = 400
    batch_size: int = 2
    learning_rate: float = 5e-3
    patch_size: tuple[int, int, int] | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"steps is {self.steps}, batch_size {self.batch_size} and learning_rate {self.learning_rate}; all must "
                "be above 0."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}.")
        if self.patch_size is not None and (
            len(self.patch_size) != 3 or any(edge < _SMALLEST_GRID or edge % _GRID_MULTIPLE for edge in self.patch_size)
        ):
            raise ValueError(
                f"patch_size is {self.patch_size}; give three multiples of {_GRID_MULTIPLE} from {_SMALLEST_GRID} (x, y, z)."
            )


def train_segmenter(
    examples: Examples,
    *,
    num_labels: int,
    settings: TrainingSettings,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> nn.Module:
    """A U-Net trained with Dice and cross-entropy loss.

    Args:
        examples: pairs of an image (1, x, y, z) in [0, 1] and a label map (1, x, y, z) of 0 to `num_labels` - 1.
        num_labels: the background included.
        settings: how long and how.
        seed: of the initial weights, the order of the examples and the patches.
        on_step: called after each step.

    Returns:
        The network, in evaluation mode, from (batch, 1, x, y, z) to (batch, num_labels, x, y, z) logits.

    Raises:
        ValueError: the training diverged.
        ModuleNotFoundError: monai is not installed.
    """
    unet, dice_and_cross_entropy = _monai("networks.nets").UNet, _monai("losses").DiceCELoss
    with _seeded(seed):
        network = unet(3, 1, num_labels, _UNET_CHANNELS, (2,) * (len(_UNET_CHANNELS) - 1), num_res_units=1)
    loss = dice_and_cross_entropy(
        to_onehot_y=True, softmax=True, include_background=False, smooth_nr=1e-5, smooth_dr=1e-5
    )
    generator = torch.Generator().manual_seed(seed)
    patch = segmentation_patch(examples[0][0], settings)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in _batches_of_indices(len(examples), settings, generator):
            pairs = [_draw_patch(*examples[index], patch, generator) for index in indices]
            images, labels = zip(*pairs, strict=True)
            yield torch.stack(images), torch.stack(labels).long()

    return _fit(network, batches(), loss, settings, on_step)


@torch.no_grad()
def segment(network: nn.Module, image: torch.Tensor, *, settings: TrainingSettings, patch: Sequence[int]) -> Any:
    """Label map (1, x, y, z), uint8, of an image (1, x, y, z) in [0, 1], from overlapping windows of the patch's size."""

    def logits(windows: torch.Tensor) -> torch.Tensor:
        with _autocast(settings):
            return network(_on_device(windows, settings)).float()

    scores = _monai("inferers").sliding_window_inference(
        _on_device(image[None], settings), patch, 1, logits, mode="gaussian"
    )
    return scores.argmax(dim=1).to("cpu", torch.uint8)


def segmentation_patch(image: torch.Tensor, settings: TrainingSettings) -> tuple[int, ...]:
    """What the segmentation network sees at once: the patch, or the image's grid rounded up to what it can halve."""
    if settings.patch_size is not None:
        return settings.patch_size
    return tuple(max(_SMALLEST_GRID, -(-edge // _GRID_MULTIPLE) * _GRID_MULTIPLE) for edge in image.shape[1:])


def train_classifier(
    examples: Examples,
    *,
    num_classes: int,
    settings: TrainingSettings,
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> nn.Module:
    """A ResNet with group normalisation, which makes it blind to the scale of a volume's intensities as a whole.

    Trained with cross-entropy loss.

    Args:
        examples: pairs of an image (1, x, y, z) in [0, 1], all of one grid, and a class from 0 to `num_classes` - 1.
        num_classes: how many classes there are.
        settings: how long and how; without `patch_size`.
        seed: of the initial weights and the order of the examples.
        on_step: called after each step.

    Returns:
        The network, in evaluation mode, from (batch, 1, x, y, z) to (batch, num_classes) logits.

    Raises:
        ValueError: a patch size was given, or the training diverged.
        ModuleNotFoundError: monai is not installed.
    """
    resnet = _monai("networks.nets").ResNet
    if settings.patch_size is not None:
        raise ValueError(f"patch_size is {settings.patch_size}; a classifier sees whole volumes, leave it out.")
    with _seeded(seed):
        network = resnet(
            "basic",
            [1, 1, 1, 1],
            list(_RESNET_CHANNELS),
            n_input_channels=1,
            num_classes=num_classes,
            conv1_t_size=3,
            conv1_t_stride=2,
            no_max_pool=True,
            norm=("group", {"num_groups": 4}),  # batch statistics of two volumes would be noise
        )
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for indices in _batches_of_indices(len(examples), settings, generator):
            images, classes = zip(*(examples[index] for index in indices), strict=True)
            yield torch.stack(images), torch.tensor(classes)

    return _fit(network, batches(), F.cross_entropy, settings, on_step)


@torch.no_grad()
def classify(network: nn.Module, image: torch.Tensor, *, settings: TrainingSettings) -> int:
    """Class of an image (1, x, y, z) in [0, 1]."""
    with _autocast(settings):
        return int(network(_on_device(image[None], settings)).argmax())


def _fit(
    network: nn.Module,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    settings: TrainingSettings,
    on_step: Callable[[], None] | None,
) -> nn.Module:
    network.to(settings.device, memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for images, targets in batches:
        with _autocast(settings), small_convolutions_in_float32(network):
            outputs = network(_on_device(images, settings))
        value = loss(outputs.float(), targets.to(settings.device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step()
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        raise ValueError(
            f"The downstream training diverged at a learning rate of {settings.learning_rate:g}; lower it."
        )
    return network.eval()


def _batches_of_indices(count: int, settings: TrainingSettings, generator: torch.Generator) -> Iterator[list[int]]:
    """As many batches as there are steps; every example comes once before any comes again."""
    waiting: list[int] = []
    for _ in range(settings.steps):
        while len(waiting) < settings.batch_size:
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[: settings.batch_size]
        waiting = waiting[settings.batch_size :]


def _draw_patch(
    image: torch.Tensor, labels: torch.Tensor, patch: Sequence[int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = _pad(image, patch), _pad(labels, patch)
    room = [edge - wanted for edge, wanted in zip(image.shape[1:], patch, strict=True)]
    if not any(room):
        return image, labels
    start = [int(torch.randint(spare + 1, (), generator=generator)) for spare in room]
    if float(torch.rand((), generator=generator)) < _LABELLED_PATCHES and labels.any():
        labelled = labels[0].nonzero()
        centre = labelled[int(torch.randint(len(labelled), (), generator=generator))].tolist()
        start = [
            min(max(place - wanted // 2, 0), spare) for place, wanted, spare in zip(centre, patch, room, strict=True)
        ]
    region = (slice(None), *(slice(first, first + wanted) for first, wanted in zip(start, patch, strict=True)))
    return image[region], labels[region]


def _pad(volume: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """Pad with zeros about the centre to at least the patch, as the sliding window does."""
    padding: list[int] = []
    for edge, wanted in zip(reversed(volume.shape[1:]), reversed(patch), strict=True):
        missing = max(0, wanted - edge)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(volume, padding)


def _on_device(images: torch.Tensor, settings: TrainingSettings) -> torch.Tensor:
    return images.to(settings.device, torch.float32, memory_format=torch.channels_last_3d)


def _autocast(settings: TrainingSettings) -> torch.autocast:
    device_type = torch.device(settings.device).type
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global CPU generator from a seed, and as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _monai(module: str) -> Any:
    try:
        return importlib.import_module(f"monai.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Measuring utility needs monai: pip install voxdiff[metrics].") from error
