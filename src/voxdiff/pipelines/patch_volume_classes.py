"""The table of classes of a latent diffusion model: label, grid, spacing and intensity rule of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from voxdiff.volume_intensities import IntensityRule
from voxdiff.volumes import VolumeProcessor

_INTENSITY_KEYS = {field.name for field in fields(IntensityRule)} - {"value_range"}


@dataclass(frozen=True, kw_only=True)
class VolumeClass:
    """One class of a model.

    Attributes:
        name: Its name, such as ``"MRKnee"``.
        id: The label that the network was trained with.
        processor: Its grid, spacing and intensity rule.
        scalars: Scalar conditions that it was trained with -> lowest and highest value; None: all, values not known.
    """

    name: str
    id: int
    processor: VolumeProcessor
    scalars: Mapping[str, Sequence[float]] | None = None


def published_classes() -> dict[str, dict[str, Any]]:
    """The seven classes of 3D MedDiffusion (arXiv 2412.13059) as its code has them, and their second grids by other names.

    Sizes and spacings are x, y, z. Volumes were scaled one by one, so no value comes back in HU.
    """
    table = {
        "CTHeadNeck": (0, (256, 256, 256), (1.0, 1.0, 1.0)),
        "CTHeadNeck-256x256x128": (0, (256, 256, 128), (1.0, 1.0, 1.0)),
        "CTChestAbdomen": (1, (256, 256, 256), (1.25, 1.25, 1.25)),
        "CTChestAbdomen-512": (1, (512, 512, 512), (0.7, 0.7, 1.0)),
        "CTLegs": (2, (256, 256, 256), (1.25, 1.25, 1.25)),
        "CTLegs-256x256x512": (2, (256, 256, 512), (1.25, 1.25, 1.25)),
        "MRT1Brain": (3, (192, 192, 192), (1.0, 1.0, 1.0)),
        "MRT2Brain": (4, (192, 192, 192), (1.0, 1.0, 1.0)),
        "MRAbdomen": (5, (256, 256, 128), (1.2, 1.2, 2.0)),
        "MRKnee": (6, (320, 320, 64), (1.0, 1.0, 1.0)),
    }
    return {
        name: {"id": label, "size": list(size), "spacing": list(spacing), "intensity": "minmax"}
        for name, (label, size, spacing) in table.items()
    }


def read_classes(
    classes: Mapping[str, Mapping[str, Any]] | None, processor: VolumeProcessor, num_class_embeds: int | None
) -> dict[str, VolumeClass]:
    """Turn a table of classes into volume processors.

    Args:
        classes: Name -> ``{"id": label}`` and what of the processor the class has otherwise: ``"size"``, ``"spacing"``, ...
            A class that names an ``"intensity"`` rule takes nothing of the processor's own rule. ``"scalars"``: name ->
            ``[lowest, highest]`` of the scalars that the class was trained with. None: the classes, if the network knows
            any, are called by their labels and share the processor.
        processor: What holds where a class says nothing; None is a value, not nothing. ``value_range`` belongs to the
            network, so all classes share it.
        num_class_embeds: Number of labels that the network knows, None for no classes.

    Raises:
        ValueError: If the network has no classes, or an entry has no label that it knows, an unknown key or an impossible
            value.
    """
    known = num_class_embeds or 0
    if classes and not known:
        raise ValueError("classes were given, but the network has no class table; leave them out.")
    table = {}
    for name, entry in (classes or {str(label): {"id": label} for label in range(known)}).items():
        settings = dict(entry)
        label, scalars = settings.pop("id", None), settings.pop("scalars", None)
        if label not in range(known) or "value_range" in settings:
            raise ValueError(
                f"The class {name!r} is {dict(entry)}; give an 'id' from 0 to {known - 1} and, where they differ from the "
                "processor's, keys of the processor other than value_range."
            )
        if scalars is not None and not isinstance(scalars, Mapping):
            raise ValueError(f"The scalars of class {name!r} are {scalars!r}; give name -> [lowest, highest].")
        own_rule = _INTENSITY_KEYS if "intensity" in settings else set()
        inherited = {key: value for key, value in processor.to_dict().items() if key not in own_rule}
        try:
            own = VolumeProcessor.from_dict({**inherited, **settings})
        except ValueError as error:
            raise ValueError(f"The class {name!r} cannot be used: {error}") from error
        table[name] = VolumeClass(name=name, id=label, processor=own, scalars=scalars)
    return table


def plain_classes(classes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A table of classes as JSON gives it back: lists instead of tuples."""
    return {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}
        for name, entry in classes.items()
    }


def find_class(classes: Mapping[str, VolumeClass], label: str | int) -> VolumeClass:
    """The class of a name or a label; a text of digits that is no name is a label.

    Raises:
        ValueError: If there is none, or the label belongs to several entries.
    """
    if isinstance(label, str) and label not in classes and label.isdecimal():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"The class is {label!r}; give a name or a label: {list_classes(classes)}.")
    found = [entry for entry in classes.values() if label == (entry.name if isinstance(label, str) else entry.id)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(entry.name for entry in found))
        raise ValueError(f"The class label {label} belongs to {names}; give one of these names.")
    raise ValueError(f"There is no class {label!r}; this model has {list_classes(classes)}.")


def list_classes(classes: Mapping[str, VolumeClass]) -> str:
    """Names and labels for a message, such as ``"CTLegs (2), MRKnee (6)"``."""
    return ", ".join(f"{entry.name} ({entry.id})" for entry in sorted(classes.values(), key=lambda entry: entry.id))
