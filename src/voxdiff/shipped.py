"""Where the models that come with voxdiff lie: inside an installed package, or beside the sources of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_folders() -> list[Path]:
    """Folders of model cards, one subfolder a model."""
    candidates = [_PACKAGE / "model_cards", _PACKAGE.parents[1] / "model_cards"]
    return [folder for folder in candidates if folder.is_dir()]


def find_shipped(name: str, file: str) -> Path | None:
    """The folder of a shipped model, known by a file it must hold; None if there is no such model."""
    return next((folder / name for folder in shipped_folders() if (folder / name / file).is_file()), None)
