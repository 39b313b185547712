"""A pipeline folder that appears under its name when it is complete, or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def require_free(out_dir: Path) -> None:
    """Raise FileExistsError if the path is a file, or a folder with something in it."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise FileExistsError(
            f"The output {str(out_dir)!r} exists already; name a folder that does not exist or is empty."
        )


@contextmanager
def new_folder(out_dir: Path) -> Iterator[Path]:
    """A temporary folder beside `out_dir` that takes its place once the block has succeeded."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        try:
            yield folder
        except (OSError, SafetensorError) as error:
            raise OSError(f"The folder {str(out_dir)!r} could not be written ({error}); nothing was left.") from error
        _share(folder)
        require_free(out_dir)
        if out_dir.exists():
            out_dir.rmdir()
        os.rename(folder, out_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _share(folder: Path) -> None:
    """Gives the permissions that ordinary files get: mkdtemp and safetensors keep theirs to the owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_pipeline_file(folder: Path, class_name: str) -> None:
    """The ``pipeline.py`` by which plain diffusers loads the folder with ``trust_remote_code``."""
    (folder / "pipeline.py").write_text(
        f"import voxdiff  # noqa: F401\nfrom voxdiff import {class_name}  # noqa: F401\n"
    )
