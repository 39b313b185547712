"""The runs of `bench_patch_volume_ablations.py`: what is trained, what is measured of it, and in which part it stands."""

from dataclasses import dataclass

Grid = tuple[int, int, int]
PATCH = 16
WHOLE, SLAB = (64, 64, 64), (64, 64, 48)

AUTOENCODER = (
    "--block_out_channels 16,32,32 --latent_channels 8 --num_embeddings 2048 --num_attention_heads 2 "
    "--attention_head_dim 16 --norm_num_groups 8"
)
AUTOENCODER_RUN = (
    "--learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 25 --mixed_precision bf16 --num_held_out 8 --grids 64"
)
PLAIN = "--adversarial_weight 0 --perceptual_weight 0"
ADVERSARIAL = "--adversarial_start 100 --discriminator_channels 16 --discriminator_layers 2"
PERCEPTUAL = "--perceptual_share 0.0625"
BIFLOWNET = (
    "--block_out_channels 24,24,48 --attention_levels 2 --num_attention_heads 4 --attention_head_dim 16 "
    "--norm_num_groups 8"
)
FLOW = "--token_size 1 --sub_volume_size 4"
DIFFUSION_RUN = (
    "--learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 50 --ema_decay 0.995 --train_batch_size 4 "
    "--ignore_autoencoder_report true --prediction_type v_prediction"
)


@dataclass(frozen=True)
class Training:
    """A run of a training script.

    Attributes:
        options: Of the script.
        steps: How many times the steps of which command-line arguments it trains for.
        base: The run whose result it starts from.
    """

    options: str
    steps: dict[str, float]
    base: str | None = None

    @property
    def is_diffusion(self) -> bool:
        """Whether latents are learnt, by BiFlowNet, and not an autoencoder."""
        return "--intra_patch" in self.options


TRAININGS = {
    "vq": Training(f"--stage patch --patch_size 16 --train_batch_size 16 {AUTOENCODER} {PLAIN}", {"patch_steps": 1}),
    "longer": Training(f"--stage patch --train_batch_size 64 {PLAIN}", {"volume_steps": 1}, base="vq"),
    "joint": Training(f"--stage volume --train_batch_size 1 {PLAIN}", {"volume_steps": 1}, base="vq"),
    "adversarial": Training(
        f"--stage patch --patch_size 16 --train_batch_size 16 {AUTOENCODER} --perceptual_weight 0 {ADVERSARIAL}",
        {"patch_steps": 1},
    ),
    "perceptual": Training(
        f"--stage patch --patch_size 16 --train_batch_size 16 {AUTOENCODER} {PERCEPTUAL} {ADVERSARIAL}",
        {"patch_steps": 1},
    ),
    "whole": Training(
        f"--stage patch --patch_size none --train_batch_size 1 {AUTOENCODER} {PLAIN}",
        {"patch_steps": 0.25, "volume_steps": 1},
    ),
    "dit": Training(
        f"{BIFLOWNET} {FLOW} --num_dit_heads 4 --intra_patch dit --grids 64", {"diffusion_steps": 1}, base="joint"
    ),
    "unet": Training(f"{BIFLOWNET} {FLOW} --intra_patch unet --grids 64", {"diffusion_steps": 1}, base="joint"),
    "none": Training(f"{BIFLOWNET} --intra_patch none --grids 64", {"diffusion_steps": 1}, base="joint"),
    "dit-whole": Training(
        f"{BIFLOWNET} {FLOW} --num_dit_heads 4 --intra_patch dit --grids 64", {"diffusion_steps": 1}, base="whole"
    ),
    "dit-grids": Training(
        f"{BIFLOWNET} {FLOW} --num_dit_heads 4 --intra_patch dit --grids 64;64,64,48",
        {"diffusion_steps": 1},
        base="joint",
    ),
}
"""Name of a run -> what is trained in it; 64 patches are as many voxels as a volume."""

DECODERS = {
    "patch decoder": ("vq", "decode_patches"),
    "patch decoder, joint use": ("vq", "decode"),
    "patch decoder, longer": ("longer", "decode_patches"),
    "joint decoder": ("joint", "decode"),
    "VQ": ("vq", "decode_patches"),
    "VQ + adversarial": ("adversarial", "decode_patches"),
    "VQ + adversarial + tri-plane": ("perceptual", "decode_patches"),
    "encoded whole": ("whole", "decode"),
}
"""What is reconstructed -> the run and the decoding."""
RECONSTRUCTIONS = {
    "reconstructions": ("joint", WHOLE),
    "reconstructions, encoded whole": ("whole", WHOLE),
}
"""Sets of reconstructions, which no generator on these latents can be expected to beat -> the run and the grid."""
GENERATORS = {
    "BiFlowNet": ("dit", WHOLE),
    "U-Net blocks for the DiT": ("unet", WHOLE),
    "no intra-patch flow": ("none", WHOLE),
    "latents encoded whole": ("dit-whole", WHOLE),
    "two grids": ("dit-grids", WHOLE),
    "BiFlowNet, asked for the other grid": ("dit", SLAB),
    "two grids, asked for the other grid": ("dit-grids", SLAB),
}
"""What is generated -> the run and the grid."""
PARTS: dict[str, tuple[str, ...]] = {
    "a": ("patch decoder", "patch decoder, joint use", "patch decoder, longer", "joint decoder"),
    "b": ("VQ", "VQ + adversarial", "VQ + adversarial + tri-plane"),
    "c": ("BiFlowNet", "U-Net blocks for the DiT", "no intra-patch flow"),
    "d": ("joint decoder", "encoded whole", *RECONSTRUCTIONS, "BiFlowNet", "latents encoded whole"),
    "e": ("BiFlowNet", "two grids", "BiFlowNet, asked for the other grid", "two grids, asked for the other grid"),
}
