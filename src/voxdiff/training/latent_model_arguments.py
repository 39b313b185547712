"""Arguments on the networks and the diffusion of latent diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voxdiff.models.biflownet_3d import BiFlowNet3DModel
from voxdiff.models.unet_wavelet_3d import WaveletUNet3DModel
from voxdiff.schedulers import make_scheduler
from voxdiff.training.arguments import option
from voxdiff.training.data_arguments import numbers, refuse
from voxdiff.training.objective_latent import LOSSES

PREDICTION_TYPES = ("sample", "epsilon", "v_prediction", "flow")
UNETS = ("biflownet", "unet3d")
_NUMBERS_OF_DIT = ("num_dit_heads", "mlp_ratio")
_NUMBERS_OF_INTRA_PATCH = ("token_size", "sub_volume_size", "num_mid_dit_layers", *_NUMBERS_OF_DIT)
_NUMBERS_OF_BIFLOWNET = (*_NUMBERS_OF_INTRA_PATCH, "num_attention_heads", "attention_head_dim")
_OF_BIFLOWNET = ("attention_levels", "intra_patch", *_NUMBERS_OF_BIFLOWNET)


@dataclass
class LatentModelArguments:
    """The networks and the diffusion; published 3D MedDiffusion settings unless given."""

    vae: str | None = option(None, "Folder of the trained autoencoder.")
    pretrained_model_name_or_path: str | None = option(
        None, "Start from this pipeline instead: its autoencoder, network and scheduler."
    )
    ignore_autoencoder_report: bool = option(False, "Continue although the autoencoder's report finds it broken.")
    unet: str | None = option(None, "biflownet (default), or unet3d: the plain 3D LDM, without conditions.")
    block_out_channels: str | None = option(None, "Width of each level; default: 72,72,144,288,576.")
    attention_levels: str | None = option(None, "Levels that attend, 0 is the finest, or none; default: 3 and deeper.")
    intra_patch: str | None = option(None, "dit (default), unet or none.")
    token_size: int | None = option(None, "Edge of an intra-patch token in latent voxels; default: 1 (8x), 2 (4x).")
    sub_volume_size: int | None = option(None, "Edge of an intra-patch sub-volume in latent voxels; default: 8.")
    num_mid_dit_layers: int | None = option(None, "Middle blocks of the intra-patch flow; default: 1.")
    num_dit_heads: int | None = option(None, "Heads of the intra-patch flow; default: 8.")
    mlp_ratio: int | None = option(None, "Hidden width over token width of the intra-patch flow; default: 4.")
    num_attention_heads: int | None = option(None, "Heads of the inter-patch attention; default: 8.")
    attention_head_dim: int | None = option(None, "Width of such a head; default: 32.")
    layers_per_block: int | None = option(None, "Residual blocks per level of unet3d; default: 2.")
    norm_num_groups: int | None = option(None, "Groups of the group norms; default: 24 (unet3d: 32).")
    label_dropout: float = option(0.0, "Share of samples that lose class and scalars, for guidance.")
    scalar_dropout: float = option(
        0.0, "Share of samples that lose a scalar, drawn for each scalar; then any may be left out."
    )
    loss_type: str = option("l1", "l1 (the published code) or l2 (the paper).")
    prediction_type: str | None = option(None, ", ".join(PREDICTION_TYPES) + "; default: epsilon.")
    scheduler: str | None = option(
        None, "Scheduler preset saved with the pipeline; default: med-dpm++ (flow-matching for flow)."
    )

    def __post_init__(self) -> None:
        if (self.vae is None) == (self.pretrained_model_name_or_path is None):
            raise ValueError("Give either --vae FOLDER, the trained autoencoder, or --pretrained_model_name_or_path.")
        if self.pretrained_model_name_or_path is not None:
            decided = ("unet", "block_out_channels", *_OF_BIFLOWNET, "layers_per_block", "norm_num_groups")
            refuse(self, (*decided, "prediction_type", "scheduler"), "comes from the pretrained model")
        if self.unet not in (None, *UNETS):
            raise ValueError(f"--unet is {self.unet!r}; choose one of {', '.join(UNETS)}.")
        if self.unet == "unet3d":
            refuse(self, _OF_BIFLOWNET, "belongs to --unet biflownet")
        else:
            refuse(self, ["layers_per_block"], "belongs to --unet unet3d")
        if self.intra_patch == "none":
            refuse(self, _NUMBERS_OF_INTRA_PATCH, "belongs to the intra-patch flow, which is none")
        elif self.intra_patch == "unet":
            refuse(self, _NUMBERS_OF_DIT, "belongs to --intra_patch dit")
        if self.loss_type not in LOSSES:
            raise ValueError(f"--loss_type is {self.loss_type!r}; choose one of {', '.join(LOSSES)}.")
        for name in ("label_dropout", "scalar_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; give a share from 0 up to, but not, 1.")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise ValueError(
                f"--prediction_type is {self.prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}."
            )
        is_flow = self.prediction_type == "flow"
        if self.scheduler is not None and is_flow != (self.scheduler == "flow-matching"):
            raise ValueError("--scheduler flow-matching and --prediction_type flow go together.")

    def make_scheduler(self, clip_latents: bool) -> Any:
        """The scheduler that is saved with the pipeline."""
        if self.prediction_type == "flow":
            return make_scheduler("flow-matching")
        changes = {"prediction_type": self.prediction_type or "epsilon", "clip_sample": clip_latents}
        return make_scheduler(self.scheduler or "med-dpm++", **changes)

    def make_unet(
        self, *, channels: int, compression: int, num_classes: int, scalar_conditions: dict[str, dict[str, float]]
    ) -> BiFlowNet3DModel | WaveletUNet3DModel:
        """The network for latents of this many channels and their conditions.

        Args:
            channels: Channels of the latents.
            compression: Voxels per latent voxel along each axis.
            num_classes: Number of classes, 0 for none.
            scalar_conditions: As BiFlowNet's config has them.

        Raises:
            ValueError: If the settings contradict each other or the conditions.
        """
        widths = tuple(numbers("block_out_channels", self.block_out_channels, int)) if self.block_out_channels else None
        shared: dict[str, Any] = {"norm_num_groups": self.norm_num_groups, "block_out_channels": widths}
        if self.unet == "unet3d":
            if num_classes or scalar_conditions or self.label_dropout or self.scalar_dropout:
                raise ValueError("--unet unet3d has no conditions; leave classes, scalars and their dropout out.")
            shared["layers_per_block"] = self.layers_per_block
            return WaveletUNet3DModel(channels, channels, skip_mode="concat", **_given(shared))
        if self.label_dropout and not (num_classes or scalar_conditions):
            raise ValueError("--label_dropout drops conditions, and there is none; leave it out.")
        if self.scalar_dropout and not scalar_conditions:
            raise ValueError("--scalar_dropout drops scalars, and there is none; leave it out.")
        own = {name: getattr(self, name) for name in _NUMBERS_OF_BIFLOWNET}
        if self.token_size is None and compression < 8:
            own["token_size"] = 2
        return BiFlowNet3DModel(
            channels,
            channels,
            attention_levels=self._attention_levels(len(widths) if widths else 5),
            intra_patch=None if self.intra_patch == "none" else self.intra_patch or "dit",
            num_class_embeds=num_classes or None,
            null_condition=self.label_dropout > 0,
            optional_scalars=self.scalar_dropout > 0,
            scalar_conditions=scalar_conditions or None,
            axis_order="xyz",
            **_given({**shared, **own}),
        )

    def _attention_levels(self, number: int) -> tuple[bool, ...]:
        if self.attention_levels == "none":
            chosen: Sequence[int] = ()
        elif self.attention_levels is None:
            chosen = range(3, number)
        else:
            chosen = numbers("attention_levels", self.attention_levels, int)
        if not set(chosen) <= set(range(number)):
            raise ValueError(f"--attention_levels is {self.attention_levels}; give numbers from 0 to {number - 1}.")
        return tuple(level in chosen for level in range(number))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
