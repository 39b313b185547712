"""Arguments on the network, the slices and the diffusion of slice-conditioned synthesis."""

from dataclasses import dataclass
from typing import Any

from voxdiff.models.unet_slice_conditioned import POSITION_EMBEDDINGS, SliceConditionedUNetModel
from voxdiff.schedulers import make_scheduler
from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import numbers, refuse

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
PUBLISHED_BATCH_SIZE = 3
"""Volumes of a step of cDPM, which took 200,000."""

_NETWORK = (
    "position_embedding",
    "block_out_channels",
    "layers_per_block",
    "attention_levels",
    "num_attention_heads",
    "norm_num_groups",
    "patch_size",
)
_WIDTHS = (128, 128, 256, 384, 512)


@dataclass
class SliceConditionedArguments:
    """The slices, the network and the diffusion; those of FDM at 128 pixels unless given.

    None means that an option was not given.
    """

    pretrained_model_name_or_path: str | None = option(None, "Start from this pipeline's weights and configuration.")
    slice_axis: int | None = option(None, "Axis the slices run along: 0 sagittal, 1 coronal, 2 axial (default).")
    max_slices: int | None = option(
        None, "Most slices of a volume at a step, targets and observed together, also in sampling; default: 20."
    )
    observed_share: float | None = option(
        None,
        "Share of the steps that observe any slice, 0 to 1; default: as in FDM, a third with 20 of 64 slices. Steps of "
        "--gap_share and --comb_share come on top.",
    )
    gap_share: float = option(
        0.0, "Share of the steps that fill the gaps between evenly spaced slices, as z-super-resolution does, 0 to 1."
    )
    comb_share: float = option(
        0.0, "Share of the steps that learn the first stage of the hierarchical scheme, slices over a whole new volume."
    )
    position_embedding: str | None = option(
        None, "relative+absolute (default): the network knows where in the volume a slice lies; relative: as published."
    )
    block_out_channels: str | None = option(None, "Width of each level; default: 128,128,256,384,512.")
    layers_per_block: int | None = option(None, "Residual blocks per level; default: 2.")
    attention_levels: str | None = option(
        None, "Levels that attend, 0 is the finest, or none; default: the last two. The middle always does."
    )
    num_attention_heads: int | None = option(None, "Heads of each attention; default: 4.")
    norm_num_groups: int | None = option(None, "Groups of the group norms; default: 32.")
    pre_norm_residual: bool = option(
        False, "Add attention to its input, instead of to the normalised input as FDM does."
    )
    interpolate_known: bool = option(
        False, "Show the network the known slices interpolated at every slice, so that it learns what that misses."
    )
    slice_convolution: bool = option(
        False, "Let neighbouring slices agree at full resolution, by a convolution before each layer of the encoder."
    )
    patch_size: int | None = option(
        None,
        "Side of the squares of pixels that become channels, against the cost of the finest level; default: 1, as published.",
    )
    prediction_type: str | None = option(None, ", ".join(PREDICTION_TYPES) + "; default: epsilon.")
    scheduler: str | None = option(None, "Scheduler preset saved with the pipeline; default: fdm-dpm++.")

    def __post_init__(self) -> None:
        self._require_choice("slice_axis", (0, 1, 2))
        self._require_choice("position_embedding", POSITION_EMBEDDINGS)
        self._require_choice("prediction_type", PREDICTION_TYPES)
        for name, least in (("max_slices", 2), ("layers_per_block", 1), ("num_attention_heads", 1), ("patch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}; give a whole number of at least {least}.")
        for name in ("observed_share", "gap_share", "comb_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} is {value}; give a number from 0 to 1.")
        if self.gap_share and self.max_slices == 2:
            raise ValueError("--gap_share needs --max_slices of at least 3, two known slices and one between them.")
        taken = self.gap_share + self.comb_share
        if taken > 1:
            raise ValueError(f"--gap_share and --comb_share are {taken:g} together; give at most 1.")
        if taken == 1 and self.observed_share is not None:
            raise ValueError(
                "--observed_share is of steps that --gap_share and --comb_share leave none of; leave it out."
            )
        if self.pretrained_model_name_or_path is not None:
            decided = (*_NETWORK, "slice_axis", "max_slices", "prediction_type", "scheduler")
            refuse(self, decided, "comes from the pretrained model")
            for name in ("interpolate_known", "slice_convolution", "pre_norm_residual"):
                if getattr(self, name):
                    raise ValueError(f"--{name} comes from the pretrained model; leave it out.")

    @property
    def axis(self) -> int:
        """Axis the slices run along, of a model that is trained from nothing."""
        return 2 if self.slice_axis is None else self.slice_axis

    @property
    def number_of_slices(self) -> int:
        """Most slices of a volume at a step, of a model that is trained from nothing."""
        return 20 if self.max_slices is None else self.max_slices

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        if self.block_out_channels is None:
            return _WIDTHS
        return tuple(numbers("block_out_channels", self.block_out_channels, int))

    def make_unet(self, depth: int) -> SliceConditionedUNetModel:
        """A new network for volumes of this many slices.

        Raises:
            ValueError: If the settings contradict each other.
        """
        widths, heads = self.widths, self.num_attention_heads or 4
        groups = 32 if self.norm_num_groups is None else self.norm_num_groups
        for name, divisor in (("norm_num_groups", groups), ("num_attention_heads", heads)):
            if divisor < 1 or any(channels % divisor for channels in widths):
                raise ValueError(f"--{name} is {divisor}, which must divide the widths {widths}.")
        return SliceConditionedUNetModel(
            block_out_channels=widths,
            layers_per_block=self.layers_per_block or 2,
            attention_levels=self._attention_levels(),
            num_attention_heads=heads,
            norm_num_groups=groups,
            position_embedding=self.position_embedding or "relative+absolute",
            position_scale=float(max(depth - 1, 1)),
            interpolate_known=self.interpolate_known,
            slice_convolution=self.slice_convolution,
            patch_size=self.patch_size or 1,
            pre_norm_residual=self.pre_norm_residual,
        )

    def make_scheduler(self) -> Any:
        """The scheduler that is saved with the pipeline."""
        return make_scheduler(self.scheduler or "fdm-dpm++", prediction_type=self.prediction_type or "epsilon")

    def _attention_levels(self) -> tuple[bool, ...]:
        number = len(self.widths)
        if self.attention_levels is None:
            chosen = set(range(max(number - 2, 0), number))
        elif self.attention_levels == "none":
            chosen = set()
        else:
            chosen = set(numbers("attention_levels", self.attention_levels, int))
        if not chosen <= set(range(number)):
            raise ValueError(f"--attention_levels is {self.attention_levels}; give numbers from 0 to {number - 1}.")
        return tuple(level in chosen for level in range(number))

    def _require_choice(self, name: str, allowed: tuple) -> None:
        value = getattr(self, name)
        if value is not None and value not in allowed:
            raise ValueError(f"--{name} is {value!r}; choose one of {', '.join(map(str, allowed))}.")
