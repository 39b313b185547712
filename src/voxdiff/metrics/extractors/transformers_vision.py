"""Any vision model of `transformers` (RAD-DINO, DINOv2, ViT, ConvNeXt, …) as an extractor of slice features."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from voxdiff.metrics.extractors.base import FeatureExtractor, Features
from voxdiff.metrics.extractors.weights import file_sha256

PREFIX = "transformers:"
_FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
_UNREAD = ("pooler.", "classifier.", "decoder.", "mask_token")  # heads, which the features do not pass through


@dataclass(kw_only=True)
class TransformersExtractor(FeatureExtractor):
    """The class token of the last layer, or the mean over positions where the network gives maps.

    Attributes:
        mean: of the three channels, on the scale [0, 1].
        deviation: of the three channels.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def settings(self) -> dict[str, Any]:
        """What pins the extractor in a report, as plain values."""
        return {**super().settings(), "mean": list(self.mean), "deviation": list(self.deviation)}

    def forward(self, images: torch.Tensor) -> Features:
        """Features (batch, hidden size) of slices (batch, 1, height, width) in [0, 1]."""
        mean, deviation = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.deviation)
        )
        last = self.network(pixel_values=(images - mean) / deviation).last_hidden_state
        return Features(last[:, 0] if last.ndim == 3 else last.mean((2, 3)))


def load_transformers(
    name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> TransformersExtractor:
    """A vision model from a folder or the Hub (with HF_HUB_OFFLINE=1, from its cache).

    Slices are brought to the grid of the model's `preprocessor_config.json` by :func:`base.resize` (padded to a square,
    resampled linearly, never cropped) and standardised with its mean and deviation.

    Args:
        name: folder, or Hub id such as "microsoft/rad-dino".
        revision: of the Hub repository.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such model, or it has no safetensors.
        ValueError: its weights do not fit its configuration, or it does not read images of three channels.
    """
    from transformers import AutoModel

    folder = _find_folder(str(name), revision)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"The vision model {str(name)!r} has no model.safetensors (a pickle is not loaded); write one with "
            "transformers' save_pretrained and give that folder."
        )
    network, info = AutoModel.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key for key in map(str, info[problem]) if not any(part in key for part in _UNREAD))
        if keys:
            raise ValueError(
                f"The weights of {str(name)!r} do not fit its config.json: {problem.replace('_', ' ')}, the first is "
                f"{keys[0]}; use weights and config of the same vision model."
            )
    mean, deviation, size = _preprocessing(folder, network.config)
    return TransformersExtractor(
        name=f"{PREFIX}{name}",
        network=network.to(device),
        spatial_dims=2,
        num_features=_hidden_size(network.config, str(name)),
        sha256=_combined_sha256(files),
        input_size=(size, size),
        note="class token of the last layer, or the mean over positions of a network without one",
        mean=mean,
        deviation=deviation,
    )


def _find_folder(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise FileNotFoundError(
            f"The vision model {name!r} is neither a folder nor in the Hub cache, and the Hub gave none "
            f"({type(error).__name__}); download it once with `hf download {name}`, or give a folder."
        ) from error


def _preprocessing(folder: Path, config: Any) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean, deviation and side in pixels that the model was published with."""
    path = folder / "preprocessor_config.json"
    if getattr(config, "num_channels", 3) != 3 or not path.is_file():
        raise ValueError(
            f"The model in {folder} has no preprocessor_config.json or reads {getattr(config, 'num_channels', 3)} "
            "channels; give a vision model of three channels with its published preprocessing."
        )
    published = json.loads(path.read_text(encoding="utf-8"))
    size = published.get("crop_size") if published.get("do_center_crop", True) else None
    size = size or published.get("size") or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int) or not published.get("image_mean") or not published.get("image_std"):
        raise ValueError(f"{path} does not give size, image_mean and image_std; give a model with its preprocessing.")
    return tuple(published["image_mean"]), tuple(published["image_std"]), size


def _hidden_size(config: Any, name: str) -> int:
    size = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if size is None:
        raise ValueError(f"The config of {name!r} has no hidden_size; give a vision model, not a pair of encoders.")
    return int(size)


def _combined_sha256(files: list[Path]) -> str:
    """Of the one weight file, or of the shards' digests in the order of their names."""
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
