"""Arguments on the networks and the diffusion of informed-slice synthesis, stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel

from voxdiff.models.slice_positions import POSITION_RULES
from voxdiff.schedulers import make_scheduler
from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import numbers, refuse
from voxdiff.training.objective_informed_slice import TIMESTEP_WEIGHTINGS

STAGES = ("autoencoder", "slice", "volume", "generator")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
PUBLISHED_RUNS: dict[str, dict[str, Any]] = {
    "autoencoder": {"use_ema": False},
    "slice": {"learning_rate": 4e-5, "train_batch_size": 1, "adam_weight_decay": 0.01},
    "volume": {"learning_rate": 4e-5, "train_batch_size": 1, "adam_weight_decay": 0.01, "use_ema": False},
    "generator": {"learning_rate": 1.6e-5, "train_batch_size": 1, "adam_weight_decay": 0.01},
}
"""Stage -> GEM-3D's optimiser, on 8 processes; a batch is counted in windows, or in volumes of 4 slices each."""

_WIDTHS = {
    "autoencoder": (128, 256, 512, 512),
    "slice": (224, 448, 672, 896),
    "generator": (224, 448, 896, 896),
}
_ATTENTION = {"slice": (1, 2, 3), "generator": (0, 1, 2)}
_SLICES = {"autoencoder": 8, "generator": 4}
_LATENT = ("vae", "prediction_type", "scheduler")
_NETWORK = ("block_out_channels", "layers_per_block", "norm_num_groups")
_UNET = ("attention_levels", "attention_head_dim")
_WINDOWS = ("window", "informed_slice")
_VOLUME = ("slice_model", "timestep_weighting", "known_share")
_STAGE_OF = {
    **dict.fromkeys(_LATENT, ("slice", "volume", "generator")),
    **dict.fromkeys(_NETWORK, ("autoencoder", "slice", "generator")),
    **dict.fromkeys(_UNET, ("slice", "generator")),
    **dict.fromkeys(_WINDOWS, ("slice", "volume")),
    **dict.fromkeys(_VOLUME, ("volume",)),
    "slices_per_volume": ("autoencoder", "generator"),
    "position_rule": ("volume", "generator"),
    "cross_attention_dim": ("generator",),
}


@dataclass
class InformedSliceArguments:
    """The stage, its network and its diffusion; GEM-3D's published settings unless given.

    None means that an option was not given.
    """

    stage: str | None = option(
        None,
        "autoencoder: of single slices. slice: the 2D network on windows of slices. volume: the layers between the slices "
        "of that network, and the whole pipeline. generator: informed slices from their position.",
    )
    vae: str | None = option(None, "Folder of the trained autoencoder, an AutoencoderKL of single slices.")
    pretrained_model_name_or_path: str | None = option(
        None, "Start from this folder: the slice stage's output for the volume stage, else the same stage's own output."
    )
    slice_model: str | None = option(None, "Output of the generator stage, saved with the volume stage's pipeline.")
    ignore_autoencoder_report: bool = option(False, "Continue although the autoencoder's report finds it broken.")
    informed_slice: str | None = option(
        None, "own (default): a slice of the volume itself; none: the baseline Make-A-Volume, without informed slices."
    )
    window: int | None = option(None, "Slices of a window; default: 16.")
    block_out_channels: str | None = option(
        None,
        "Width of each level; default: 224,448,672,896 (generator: 224,448,896,896; autoencoder: 128,256,512,512).",
    )
    layers_per_block: int | None = option(None, "Residual blocks per level; default: 2.")
    attention_levels: str | None = option(
        None, "Levels that attend, 0 is the finest, or none; default: 1,2,3 (generator: 0,1,2). The middle always does."
    )
    attention_head_dim: int | None = option(None, "Width of an attention head; default: 32.")
    norm_num_groups: int | None = option(None, "Groups of the group norms; default: 32.")
    cross_attention_dim: int | None = option(None, "Length of the embedded position; default: 128.")
    slices_per_volume: int | None = option(
        None, "Slices drawn from each volume of a batch; default: 4 (autoencoder: 8)."
    )
    position_rule: str | None = option(
        None, f"How the generator counts positions: {' or '.join(POSITION_RULES)}; default: inclusive."
    )
    train_spatial: bool = option(False, "Let the volume stage train the slice stage's weights too.")
    known_slice_indicator: bool = option(False, "Tell the network which slices are known, and train with known slices.")
    known_share: float | None = option(None, "Share of windows with known slices, with the indicator; default: 0.5.")
    timestep_weighting: str | None = option(
        None, f"{' or '.join(TIMESTEP_WEIGHTINGS)}; default: published, twice as often near the data as near the noise."
    )
    prediction_type: str | None = option(None, ", ".join(PREDICTION_TYPES) + "; default: epsilon.")
    scheduler: str | None = option(None, "Scheduler preset saved with the model; default: gem-dpm++.")

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"--stage is {self.stage!r}; choose one of {', '.join(STAGES)}.")
        for name, stages in _STAGE_OF.items():
            if self.stage not in stages:
                refuse(self, [name], f"belongs to --stage {' or '.join(stages)}")
        self._require_choice("informed_slice", ("own", "none"))
        self._require_choice("position_rule", POSITION_RULES)
        self._require_choice("timestep_weighting", TIMESTEP_WEIGHTINGS)
        self._require_choice("prediction_type", PREDICTION_TYPES)
        for name in ("window", "layers_per_block", "attention_head_dim", "slices_per_volume", "cross_attention_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; give a whole number of at least 1.")
        if self.pretrained_model_name_or_path is not None:
            decided = (*_NETWORK, *_UNET, "cross_attention_dim", "prediction_type", "scheduler")
            refuse(self, decided, "comes from the pretrained model")
        if self.stage == "autoencoder" and self.ignore_autoencoder_report:
            raise ValueError("--ignore_autoencoder_report belongs to the stages after the autoencoder; leave it out.")
        if self.stage != "autoencoder" and self.vae is None:
            raise ValueError(f"--stage {self.stage} works in latents; give --vae FOLDER, the trained autoencoder.")
        self._check_volume_stage()

    @property
    def has_informed_slice(self) -> bool:
        """Whether the network sees an informed slice; the baseline does not."""
        return self.informed_slice != "none"

    @property
    def window_length(self) -> int:
        """Slices of a window."""
        return 16 if self.window is None else self.window

    @property
    def number_of_slices(self) -> int:
        """Slices drawn from each volume of a batch."""
        return _SLICES[self.stage or ""] if self.slices_per_volume is None else self.slices_per_volume

    @property
    def rule(self) -> str:
        """How positions are counted."""
        return self.position_rule or "inclusive"

    @property
    def share_known(self) -> float | None:
        """Share of windows with known slices; None without the indicator."""
        if not self.known_slice_indicator:
            return None
        return 0.5 if self.known_share is None else self.known_share

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level of a new network."""
        if self.block_out_channels is None:
            return _WIDTHS[self.stage or ""]
        widths = tuple(numbers("block_out_channels", self.block_out_channels, int))
        if not widths or min(widths) < 1:
            raise ValueError(f"--block_out_channels is {self.block_out_channels!r}; give numbers above 0.")
        return widths

    def make_scheduler(self) -> Any:
        """The scheduler of a model that is trained from nothing."""
        return make_scheduler(self.scheduler or "gem-dpm++", prediction_type=self.prediction_type or "epsilon")

    def make_slice_unet(self, channels: int) -> UNet2DModel:
        """The slice stage's network, for latents of this many channels.

        Raises:
            ValueError: If the settings contradict each other.
        """
        attends, width = self._attention_levels(), self.attention_head_dim or 32
        # Attention in the middle has the last width
        attending = {channels for channels, level in zip(self.widths, attends, strict=True) if level} | {
            self.widths[-1]
        }
        self._require_heads(width, sorted(attending))
        return UNet2DModel(
            in_channels=channels * (3 if self.has_informed_slice else 2),
            out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if level else "DownBlock2D" for level in attends),
            up_block_types=tuple("AttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)),
            attention_head_dim=width,
            **self.common_settings(),
        )

    def make_generator_unet(self, channels: int) -> UNet2DConditionModel:
        """The generator stage's network, for latents of this many channels.

        Raises:
            ValueError: If the settings contradict each other.
        """
        attends, width = self._attention_levels(), self.attention_head_dim or 32
        self._require_heads(width, self.widths)
        return UNet2DConditionModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)),
            # Named as in diffusers, where it is the number of heads of each level
            attention_head_dim=tuple(channels // width for channels in self.widths),
            cross_attention_dim=self.cross_attention_dim or 128,
            **self.common_settings(),
        )

    def common_settings(self) -> dict[str, Any]:
        """Widths, blocks per level and groups of a new network.

        Raises:
            ValueError: If the groups do not divide the widths.
        """
        groups = 32 if self.norm_num_groups is None else self.norm_num_groups
        if groups < 1 or any(channels % groups for channels in self.widths):
            raise ValueError(f"--norm_num_groups is {groups}, which must divide the widths {self.widths}.")
        return {
            "block_out_channels": self.widths,
            "layers_per_block": self.layers_per_block or 2,
            "norm_num_groups": groups,
        }

    def _require_heads(self, width: int, channels: Sequence[int]) -> None:
        if any(number % width for number in channels):
            raise ValueError(
                f"--attention_head_dim is {width}, which must divide the widths {', '.join(map(str, channels))}."
            )

    def _attention_levels(self) -> tuple[bool, ...]:
        number = len(self.widths)
        if self.attention_levels is None:
            chosen = set(_ATTENTION[self.stage or ""]) & set(range(number))
        elif self.attention_levels == "none":
            chosen = set()
        else:
            chosen = set(numbers("attention_levels", self.attention_levels, int))
        if not chosen <= set(range(number)):
            raise ValueError(f"--attention_levels is {self.attention_levels}; give numbers from 0 to {number - 1}.")
        return tuple(level in chosen for level in range(number))

    def _require_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value is not None and value not in allowed:
            raise ValueError(f"--{name} is {value!r}; choose one of {', '.join(allowed)}.")

    def _check_volume_stage(self) -> None:
        if self.stage != "volume":
            for name in ("train_spatial", "known_slice_indicator"):
                if getattr(self, name):
                    raise ValueError(f"--{name} belongs to --stage volume; leave it out.")
            return
        if self.pretrained_model_name_or_path is None:
            raise ValueError("--stage volume needs the slice stage: --pretrained_model_name_or_path SLICE_OUTPUT_DIR.")
        if not self.known_slice_indicator:
            refuse(self, ["known_share"], "belongs to --known_slice_indicator")
        if not self.has_informed_slice:
            refuse(self, ["slice_model", "position_rule"], "makes informed slices, and --informed_slice is none")
            if self.known_slice_indicator:
                raise ValueError("--known_slice_indicator needs informed slices, and --informed_slice is none.")
