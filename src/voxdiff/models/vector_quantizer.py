"""Vector quantiser whose codebook follows the encoder by moving averages (van den Oord et al. 2017, appendix A.1)."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import nn

_DISTANCES_AT_ONCE = 2**20  # 4 MiB: less than any decoder's budget, and faster than more
_SMOOTHING = 1e-7
_JITTER = 0.01


@dataclass
class VectorQuantizerOutput(BaseOutput):
    """Output of :class:`VectorQuantizerEMA`.

    Attributes:
        latents: Nearest codebook entries in the shape of the input; gradients pass straight through to the input.
        codes: Their numbers, ``(batch, x, y, z)``, int64.
        commitment_loss: Weighted mean squared distance of the latents from their entries, a scalar.
        perplexity: Exponential of the entropy of the codes of this batch (of all processes in training), a scalar.
    """

    latents: torch.Tensor
    codes: torch.Tensor
    commitment_loss: torch.Tensor
    perplexity: torch.Tensor


class VectorQuantizerEMA(nn.Module):
    """Replaces latent vectors by their nearest codebook entries and, in training, moves the entries towards them.

    The first training batch fills the codebook with random latents. Every later one updates the moving averages of how
    often each entry is used and of what it is used for; entries in too little use restart from random latents of the
    batch. Whether the codebook is filled follows from the stored usage and so survives saving. Distances and averages
    are computed in float32 whatever the dtype of the latents. Processes share their batches, which must be of one size.

    Args:
        num_embeddings: Entries of the codebook.
        embedding_dim: Channels of the latents.
        decay: Decay of the moving averages.
        restart_threshold: Average use per batch below which an entry restarts.
        commitment_weight: Weight of the commitment loss.
    """

    embedding: torch.Tensor
    cluster_size: torch.Tensor
    embed_avg: torch.Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        decay: float = 0.99,
        restart_threshold: float = 1.0,
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.decay = decay
        self.restart_threshold = restart_threshold
        self.commitment_weight = commitment_weight
        self.frozen = False
        self.register_buffer("embedding", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("cluster_size", torch.zeros(num_embeddings))
        self.register_buffer("embed_avg", torch.zeros(num_embeddings, embedding_dim))

    @property
    def initialized(self) -> bool:
        """Whether a training batch or a checkpoint has filled the codebook."""
        return bool(self.cluster_size.any())

    def freeze(self) -> None:
        """Never change the codebook again, in training mode neither."""
        self.frozen = True

    def forward(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> VectorQuantizerOutput:
        """Quantise ``(batch, embedding_dim, x, y, z)``; in training mode, update the codebook unless it is frozen.

        Args:
            latents: Output of the encoder.
            generator: CPU generator of the random choices in training (default: torch's global one).

        Raises:
            ValueError: If the latents have another number of channels.
        """
        self._check_channels(latents)
        flat = _rows(latents.detach())
        updates = self.training and not self.frozen
        if updates and not self.initialized:
            self._initialize(flat, generator)
        codes = self._nearest_rows(flat)
        counts = torch.zeros_like(self.cluster_size, dtype=torch.float32).index_add_(
            0, codes, flat.new_ones(len(codes))
        )
        quantized = self._entries(codes, latents)
        if updates:
            _sum_over_processes(counts)
            self._update(flat, codes, counts, generator)
        frequencies = counts / counts.sum()
        straight_through = latents + (quantized - latents).detach()
        return VectorQuantizerOutput(
            latents=straight_through if latents.requires_grad else quantized,
            codes=codes.view(latents.shape[0], *latents.shape[2:]),
            commitment_loss=self.commitment_weight * F.mse_loss(latents.float(), quantized.float()),
            perplexity=torch.exp(-(frequencies * torch.log(frequencies + 1e-7)).sum()),
        )

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Numbers ``(batch, x, y, z)`` of the entries nearest to ``(batch, embedding_dim, x, y, z)``.

        Raises:
            ValueError: If the latents have another number of channels.
        """
        self._check_channels(latents)
        return self._nearest_rows(_rows(latents)).view(latents.shape[0], *latents.shape[2:])

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Entries ``(batch, embedding_dim, x, y, z)`` of codes ``(batch, x, y, z)``.

        Raises:
            ValueError: If a code is no whole number, or no entry's number.
        """
        if codes.is_floating_point():
            raise ValueError(f"The codes are {codes.dtype}; give whole numbers, as quantize_latents does.")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_embeddings:
            raise ValueError(
                f"The codes run from {int(codes.min())} to {int(codes.max())}, but the codebook has the entries 0 to "
                f"{self.num_embeddings - 1}; use codes of this model's quantize_latents."
            )
        return F.embedding(codes, self.embedding).movedim(-1, 1)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """The nearest entries in the shape and dtype of the latents ``(batch, embedding_dim, x, y, z)``."""
        self._check_channels(latents)
        return self._entries(self._nearest_rows(_rows(latents)), latents)

    def _check_channels(self, latents: torch.Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.embedding_dim:
            raise ValueError(
                f"The quantiser got latents of shape {tuple(latents.shape)}; it takes (batch, {self.embedding_dim}, "
                "x, y, z)."
            )

    def _nearest_rows(self, rows: torch.Tensor) -> torch.Tensor:
        # argmin |z - e|² = argmin |e|²/2 - z·e; chunks, because all voxels x entries at once are most of a decoder's memory
        entries = self.embedding.float()
        half_norms = entries.square().sum(1) / 2
        chunks = rows.split(max(1, _DISTANCES_AT_ONCE // self.num_embeddings))
        with torch.autocast(rows.device.type, enabled=False):
            return torch.cat([torch.addmm(half_norms, chunk, entries.T, alpha=-1).argmin(1) for chunk in chunks])

    def _entries(self, codes: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        entries = F.embedding(codes, self.embedding).view(latents.shape[0], *latents.shape[2:], self.embedding_dim)
        return entries.movedim(-1, 1).to(latents.dtype)

    @torch.no_grad()
    def _initialize(self, rows: torch.Tensor, generator: torch.Generator | None) -> None:
        self.embedding.copy_(self._random_rows(_gather_over_processes(rows), generator))
        self.embed_avg.copy_(self.embedding)
        self.cluster_size.fill_(1)

    @torch.no_grad()
    def _update(
        self, rows: torch.Tensor, codes: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None
    ) -> None:
        sums = torch.zeros_like(self.embed_avg, dtype=torch.float32).index_add_(0, codes, rows)
        _sum_over_processes(sums)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        total = self.cluster_size.sum()
        # Laplace smoothing keeps the mean of an unused entry finite
        weights = (self.cluster_size + _SMOOTHING) / (total + self.num_embeddings * _SMOOTHING) * total
        self.embedding.copy_(self.embed_avg / weights[:, None])
        unused = self.cluster_size < self.restart_threshold
        if unused.any():
            fresh = self._random_rows(_gather_over_processes(rows), generator)
            self.embedding.copy_(torch.where(unused[:, None], fresh, self.embedding))

    def _random_rows(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """One row an entry, all distinct: where there are too few, copies moved by a little noise."""
        number = self.num_embeddings
        repeats = -(-number // len(rows))
        chosen = torch.randperm(repeats * len(rows), generator=generator)[:number].to(rows.device)
        noise = torch.randn(number, self.embedding_dim, generator=generator).to(rows.device)
        _copy_from_first_process(chosen, noise)
        picked = rows[chosen % len(rows)]
        return picked + noise * (_JITTER / self.embedding_dim**0.5) if repeats > 1 else picked


def _rows(latents: torch.Tensor) -> torch.Tensor:
    """``(batch, channels, x, y, z)`` as float32 ``(voxels, channels)``."""
    return latents.movedim(1, -1).flatten(0, 3).float()


def _in_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_processes(tensor: torch.Tensor) -> None:
    if _in_parallel():
        dist.all_reduce(tensor)


def _gather_over_processes(rows: torch.Tensor) -> torch.Tensor:
    if not _in_parallel():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def _copy_from_first_process(*tensors: torch.Tensor) -> None:
    if _in_parallel():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
