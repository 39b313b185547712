"""Arguments on the autoencoder that is trained, and on its losses."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxdiff.models.autoencoder_3d import Autoencoder3D
from voxdiff.models.autoencoder_kl_3d import AutoencoderKL3D
from voxdiff.models.autoencoder_patch_volume import AutoencoderPatchVolume
from voxdiff.models.discriminator_patch_3d import PatchDiscriminator3D
from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import names, numbers, refuse, triple
from voxdiff.training.objective_autoencoder import AutoencoderLossWeights
from voxdiff.training.source_arguments import SourceArguments

STAGES = ("patch", "volume")
PUBLISHED_RUNS: dict[tuple[str, int], dict[str, Any]] = {
    ("patch", 8): {"learning_rate": 3e-4, "train_batch_size": 24},
    ("patch", 4): {"learning_rate": 3e-4, "train_batch_size": 16},
    ("volume", 8): {"learning_rate": 3e-5, "train_batch_size": 1},
    ("volume", 4): {"learning_rate": 3e-5, "train_batch_size": 1},
}
"""Stage and compression -> what 3D MedDiffusion's autoencoders were trained with.

The volume stage's learning rate at four-fold compression is the paper's; the published code has 3e-4.
"""
PUBLISHED_STARTS = {("patch", 8): 20_000, ("patch", 4): 12_000, ("volume", 8): 0, ("volume", 4): 0}
"""Stage and compression -> first step with the discriminator."""
PUBLISHED_OPTIMISER = {"adam_beta1": 0.5, "adam_beta2": 0.9, "max_grad_norm": None, "use_ema": False}
LAYOUT = {"channels_last": False}
"""Group norm, which is everywhere in these networks, is twice as slow in that layout on a CPU (16 bit), and inexact."""

_NETWORK = ("latent_channels", "num_attention_heads", "attention_head_dim", "norm_num_groups", "num_embeddings")
_CODEBOOK = ("num_embeddings",)
_LOSSES = ("l1", "perceptual", "adversarial", "feature_matching", "kl")
_NEW_DISCRIMINATOR = ("discriminator_channels", "discriminator_layers")
_ADVERSARIAL = ("feature_matching_weight", "adversarial_start", "discriminator", *_NEW_DISCRIMINATOR)
_PERCEPTUAL = ("perceptual_share", "lpips_weights", "lpips_heads")
_WHOLE_VOXELS = 256 * 256 * 128
_LARGE_CROPS = {8: (192, 192, 192), 4: (256, 256, 128)}


@dataclass
class AutoencoderDataArguments(SourceArguments):
    """The volumes that the autoencoder learns, by class and grid: the options of the diffusion model's training."""

    scalar_columns: str | None = field(default=None, init=False)
    latents_dir: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.are_encoded:
            raise ValueError(
                "Give the training data: --train_data_dir DIR with NIfTI files, or --cohort mr,ct for the simulated "
                "cohort."
            )
        super().__post_init__()


@dataclass
class AutoencoderArguments:
    """The autoencoder and its losses; 3D MedDiffusion's eight-fold one unless given.

    None means that an option was not given.
    """

    stage: str = option(
        "patch",
        "patch: everything learns, on patches (or crops, without --patch_size). volume: the decoder of the patch stage "
        "learns to decode whole volumes, the encoder and the codebook stay. The stage sets the published learning rate, "
        "batch size and adversarial start, those of 4x with three --block_out_channels.",
    )
    pretrained_model_name_or_path: str | None = option(
        None, "Start from this autoencoder; for the volume stage that of the patch stage."
    )
    autoencoder: str | None = option(None, "vq (a codebook, the default) or kl (a normal posterior).")
    patch_size: str | None = option(
        None, "Side of the patches that are encoded apart; default: 64 with a codebook. none: a plain VQ-GAN."
    )
    block_out_channels: str | None = option(None, "Width of each level; default: 48,96,192,192. 4x: 48,96,96.")
    latent_channels: int | None = option(None, "Channels of the latent; default: 8.")
    num_embeddings: int | None = option(None, "Entries of the codebook; default: 8192.")
    num_attention_heads: int | None = option(None, "Heads of the attention at the lowest resolution; default: 4.")
    attention_head_dim: int | None = option(None, "Width of a head; default: 32.")
    norm_num_groups: int | None = option(None, "Groups of the group norms; default: 24.")
    crop_size: str | None = option(
        None,
        "Random crops of the volume stage, or without --patch_size: one number or x,y,z; default: whole volumes, above "
        "256x256x128 voxels 192,192,192 (8x) or 256,256,128 (4x).",
    )
    patches_per_volume: int = option(1, "Patches cut out of each volume of a batch; more make reading cheaper.")
    augment: bool = option(True, "Mirror along x and y, and turn by a quarter in the x-y plane, each with p 0.5.")
    l1_weight: float = option(4.0, "Weight of the absolute error.")
    perceptual_weight: float = option(2.0, "Weight of the tri-plane perceptual loss; 0 does without.")
    perceptual_share: float | None = option(None, "Share of the slices of each plane that it sees; default: 0.2.")
    lpips_weights: str | None = option(
        None, "VGG-16 as safetensors (voxdiff convert-extractor vgg16); default: a substitute, the cohort-2d extractor."
    )
    lpips_heads: str | None = option(None, "LPIPS heads (voxdiff convert-extractor lpips-vgg); default: torchmetrics'.")
    adversarial_weight: float = option(2.0, "Weight of the discriminator; 0 does without.")
    feature_matching_weight: float | None = option(None, "Weight of the error of the discriminator's maps; default: 4.")
    adversarial_start: int | None = option(
        None, "First step with the discriminator; default: 20000 in the patch stage (4x: 12000), 0 in the volume stage."
    )
    discriminator: str | None = option(
        None, "Go on with this discriminator, such as PATCH_RUN/checkpoint-1000/adversary; default: a new one."
    )
    discriminator_channels: int | None = option(None, "Width of the first block of a new discriminator; default: 32.")
    discriminator_layers: int | None = option(None, "Blocks of stride 2 of a new discriminator; default: 3.")
    kl_weight: float | None = option(
        None, "Weight of the divergence in nats per volume, with --autoencoder kl; default: 1e-6."
    )
    num_held_out: int = option(40, "Volumes of each class and grid that are kept for the report and the pictures.")

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"--stage is {self.stage!r}; choose one of {', '.join(STAGES)}.")
        if self.autoencoder not in (None, "vq", "kl"):
            raise ValueError(f"--autoencoder is {self.autoencoder!r}; choose vq or kl.")
        for name in _LOSSES:
            weight = getattr(self, f"{name}_weight")
            if weight is not None and not weight >= 0:
                raise ValueError(f"--{name}_weight is {weight}; give a number of at least 0.")
        if self.patches_per_volume < 1 or (self.patches_per_volume > 1 and self.stage == "volume"):
            raise ValueError(
                f"--patches_per_volume is {self.patches_per_volume} in the stage {self.stage!r}; give at least 1, and more "
                "in the patch stage only."
            )
        if self.first_adversarial_step < 0:
            raise ValueError(f"--adversarial_start is {self.adversarial_start}; give a step of at least 0.")
        if self.num_held_out < 1:
            raise ValueError(f"--num_held_out is {self.num_held_out}; give at least one volume.")
        if self.pretrained_model_name_or_path is not None:
            decided = ("autoencoder", "patch_size", "block_out_channels", *_NETWORK)
            refuse(self, decided, "comes from the pretrained autoencoder")
        elif self.stage == "volume":
            raise ValueError("--stage volume needs the patch stage: --pretrained_model_name_or_path PATCH_OUTPUT_DIR.")
        if self.autoencoder == "kl":
            refuse(self, _CODEBOOK, "belongs to --autoencoder vq")
        self._refuse_options_without_their_loss()

    @property
    def is_adversarial(self) -> bool:
        """Whether a discriminator plays."""
        return self.adversarial_weight > 0

    @property
    def published_run(self) -> tuple[str, int]:
        """Key of :data:`PUBLISHED_RUNS`; a pretrained autoencoder counts as an eight-fold one."""
        levels = len(names(self.block_out_channels))
        return self.stage, 4 if levels == 3 else 8

    @property
    def first_adversarial_step(self) -> int:
        """First step with the discriminator."""
        return PUBLISHED_STARTS[self.published_run] if self.adversarial_start is None else self.adversarial_start

    def make_autoencoder(self) -> Autoencoder3D:
        """An untrained autoencoder.

        Raises:
            ValueError: If the options do not fit together.
        """
        config: dict[str, Any] = {name: asdict(self)[name] for name in _NETWORK if asdict(self)[name] is not None}
        if self.block_out_channels:
            config["block_out_channels"] = tuple(numbers("block_out_channels", self.block_out_channels, int))
        if self.patch_size is not None:
            config["patch_size"] = None if self.patch_size == "none" else _side(self.patch_size)
        kind = AutoencoderKL3D if self.autoencoder == "kl" else AutoencoderPatchVolume
        return kind(**config, axis_order="xyz")

    def loss_weights(self, vae: Autoencoder3D) -> AutoencoderLossWeights:
        """Weights of the terms for an autoencoder.

        Raises:
            ValueError: If a divergence is weighted that the autoencoder does not have.
        """
        if not isinstance(vae, AutoencoderKL3D):
            refuse(self, ("kl_weight",), "belongs to --autoencoder kl")
        weights = {name: getattr(self, f"{name}_weight") for name in _LOSSES}
        return AutoencoderLossWeights(**{name: weight for name, weight in weights.items() if weight is not None})

    def make_discriminator(self) -> PatchDiscriminator3D | None:
        """The discriminator to begin with; None if none plays.

        Raises:
            OSError, ValueError: If the folder of a trained one does not hold it.
        """
        if not self.is_adversarial:
            return None
        if self.discriminator is None:
            layout = {"base_channels": self.discriminator_channels, "num_layers": self.discriminator_layers}
            return PatchDiscriminator3D(**{name: value for name, value in layout.items() if value is not None})
        if not (Path(self.discriminator) / "config.json").is_file():
            raise FileNotFoundError(
                f"--discriminator {self.discriminator} has no config.json; give a folder such as "
                "PATCH_RUN/checkpoint-1000/adversary."
            )
        return PatchDiscriminator3D.from_pretrained(self.discriminator)

    def crop_of(self, vae: Autoencoder3D, grids: list[tuple[int, ...]]) -> tuple[int, ...] | None:
        """Size of the crops; None for whole volumes.

        Raises:
            ValueError: If the stage does not go with the autoencoder, or the crops or grids not with its compression.
        """
        patch_size = vae.config["patch_size"]
        if self.stage == "volume" and patch_size is None:
            raise ValueError("An autoencoder without patches learns whole volumes at once; it has no --stage volume.")
        if self.stage == "patch" and patch_size is not None:
            refuse(self, ("crop_size",), "belongs to --stage volume, this one sees patches")
            size: tuple[int, ...] | None = (patch_size,) * 3
        else:
            size = triple("crop_size", self.crop_size, int)
        if size is None and max(x * y * z for x, y, z in grids) > _WHOLE_VOXELS:
            size = _LARGE_CROPS.get(vae.compression, _LARGE_CROPS[4])
        for grid in grids:
            vae.latent_shape(size or grid)
            if size and any(side > whole for side, whole in zip(size, grid, strict=True)):
                raise ValueError(f"Crops of {size} voxels do not fit into volumes of {grid}; choose smaller ones.")
        return size

    def _refuse_options_without_their_loss(self) -> None:
        if not self.is_adversarial:
            refuse(self, _ADVERSARIAL, "belongs to an --adversarial_weight above 0")
        if self.discriminator is not None:
            refuse(self, _NEW_DISCRIMINATOR, "comes from the pretrained --discriminator")
        if not self.perceptual_weight:
            refuse(self, _PERCEPTUAL, "belongs to a --perceptual_weight above 0")
        if self.stage == "volume":
            refuse(self, ("kl_weight",), "belongs to --stage patch, where the encoder learns")


def _side(text: str) -> int:
    values = names(text)
    if len(values) != 1 or not values[0].isdigit():
        raise ValueError(f"--patch_size is {text!r}; give one number of voxels, or none.")
    return int(values[0])
