"""What every training script does around its run."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the script with the sentence of an error that a user can mend, and exit code 1."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, SafetensorError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def removed_on_error(*folders: Path) -> Iterator[None]:
    """If the block fails, remove those of the folders that it made."""
    new = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def require_outside(output_dir: Path, data_dir: Path) -> None:
    """Raise ValueError if a run would write its own volumes among the training data."""
    if output_dir.resolve().is_relative_to(data_dir.resolve()):
        raise ValueError(f"--output_dir {output_dir} lies inside the training data {data_dir}; choose another folder.")


def launch_command() -> str:
    """How this script was started, for its record."""
    return shlex.join(["accelerate", "launch", *sys.argv])
