"""Model cards of converted checkpoints."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from voxdiff import __version__
from voxdiff.hub.presets import PRESETS, Preset, Source

LIMITS = """\
## Intended use and limits

Research on image synthesis. Not for clinical use, and not for diagnosis, treatment or any decision about a person. The
volumes are synthetic: findings in them are nobody's. A generative model can repeat parts of its training images.
How well this folder's volumes match those of the official code was not measured.
"""
"""Last section of every converted model's card."""


def conversion_card(
    converter: str, preset_name: str, pipeline_class: str, checkpoint: str, sha256: str, overrides: Mapping[str, Any]
) -> str:
    """The README.md of a pipeline folder made from an official checkpoint.

    Args:
        converter: Name of the converter.
        preset_name: Name of the preset.
        pipeline_class: Class that loads the folder.
        checkpoint: File name of the checkpoint.
        sha256: Its SHA-256.
        overrides: What the caller gave besides the preset.
    """
    preset = PRESETS[preset_name]
    source, conditions = preset.source, _in_order(preset.condition_volumes or {})
    published = checkpoint in source.files
    data = ModelCardData(
        license=source.licence if published else "unknown",
        library_name="diffusers",
        pipeline_tag="image-to-image" if conditions else "unconditional-image-generation",
        base_model=source.repository if published else None,
        tags=["voxdiff", "medical", "3d", "image-synthesis", f"arxiv:{source.paper}"],
    )
    options = "".join(f" --{key.replace('_', '-')} {value}" for key, value in overrides.items())
    takes = f"\n- Takes, in this order: {_code(conditions)}" if conditions else ""
    inputs = "{" + ", ".join(f'"{name}": "{name}.nii.gz"' for name in conditions) + "}, " if conditions else ""
    return f"""---
{data.to_yaml()}
---

# {converter} · {preset_name}

Weights converted from `{checkpoint}` with voxdiff {__version__}:
`voxdiff convert {converter} {checkpoint} OUT --preset {preset_name}{options}`. No value was changed.

- SHA-256 of the checkpoint: `{sha256}`
- Makes: {_code(_in_order(preset.output_volumes))}{takes}
- {_grid(preset)}
- Training data: {source.data}
- Paper: [arXiv:{source.paper}](https://arxiv.org/abs/{source.paper})

## Use

```python
import voxdiff

pipe = voxdiff.{pipeline_class}.from_pretrained("path/to/this/folder")
image = pipe({inputs}num_inference_steps=1000).volumes[0]
```

Plain diffusers loads it too, with `custom_pipeline="pipeline", trust_remote_code=True` (voxdiff must be installed).

## Licence and source

{_licence(source, published)} The training data have terms of their own.

{LIMITS}"""


def _in_order(places: Mapping[str, int]) -> list[str]:
    return sorted(places, key=lambda name: places[name])


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _grid(preset: Preset) -> str:
    processor = preset.processor
    size = " x ".join(map(str, processor.size or ()))
    spacing = " x ".join(f"{edge:g}" for edge in processor.spacing or ())
    return f"Grid {size}, {spacing} mm, axes {processor.orientation}; values come back in {processor.unit}"


def _licence(source: Source, published: bool) -> str:
    repository = f"[{source.repository}](https://huggingface.co/{source.repository})"
    if published:
        return f"The file was published in {repository}, whose card states the {source.licence.upper()} licence."
    return (
        f"The file does not have the name of one published in {repository}, so its licence is not known here: state it "
        "before you share this folder."
    )
