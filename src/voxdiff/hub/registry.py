"""Where a model name leads: the models that ship with voxdiff, a checkout's model_cards/, then the Hub."""

import os

from voxdiff.shipped import find_shipped, shipped_folders

DEFAULT_MODEL = "wdm-brain-64"


def resolve_model(name: str) -> str:
    """Turn a model name into what ``from_pretrained`` takes.

    Args:
        name: A folder, the name of a shipped model (``"wdm-brain-64"``), or a Hub repository ``"organisation/name"``.

    Raises:
        FileNotFoundError: If it is none of these.
    """
    if os.path.exists(name):
        return name
    if (shipped_model := find_shipped(name, "model_index.json")) is not None:
        return str(shipped_model)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    shipped = ", ".join(shipped_models()) or "none in this installation"
    raise FileNotFoundError(
        f"There is no model {name!r}; give a pipeline folder, a Hub repository (organisation/name), or a shipped model: "
        f"{shipped}."
    )


def shipped_models() -> list[str]:
    """Names of the models that come with this installation."""
    return sorted({path.parent.name for folder in shipped_folders() for path in folder.glob("*/model_index.json")})
