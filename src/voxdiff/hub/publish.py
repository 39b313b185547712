"""Pipeline folders to the Hugging Face Hub."""

import json
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

# What a training run may leave beside its pipeline shows patients, or names local files.
_PRIVATE = (".*", "run.json", "manifest.json", "autoencoder_report.*", "*.safetensors")


def publish_folder(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a pipeline folder, with its README.md as the card; the repository is created if it does not exist.

    Of the folders only those of the pipeline's components are sent, so that checkpoints, caches, latents and validation
    volumes stay at home, whatever they are called. ``run.json``, hidden files, and prepared volumes or latents right in
    the folder, with their manifest and report, stay too.

    Args:
        folder: A folder that holds a ``model_index.json``.
        repo_id: ``"organisation/name"``.
        private: Create the repository as a private one.
        token: Access token; None is the one of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the folder holds no pipeline, or `repo_id` is no repository name.
        OSError: If the Hub refuses, or cannot be reached.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no model_index.json; give a pipeline folder, as save_pretrained writes it.")
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        allow_patterns=_published(folder),
        ignore_patterns=["*/.*"],
        commit_message="Publish the pipeline",
    )
    return commit.commit_url


def _published(folder: Path) -> list[str]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = [name for name, value in index.items() if isinstance(value, list) and (folder / name).is_dir()]
    files = [path.name for path in folder.iterdir() if path.is_file()]
    public = [name for name in files if not any(fnmatch(name, pattern) for pattern in _PRIVATE)]
    return [*(f"{name}/*" for name in components), *public]


def require_access(repo_id: str, *, token: str | None = None) -> str:
    """Ask the Hub who we are, before the work whose result is to be published.

    Returns:
        The user's name.

    Raises:
        OSError: If nobody is logged in, or the Hub cannot be reached.
        ValueError: If `repo_id` is no repository name.
    """
    validate_repo_id(repo_id)
    try:
        return HfApi(token=token).whoami()["name"]
    except OSError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise OSError(f"The Hub does not know you ({reason}); log in with `hf auth login` or set HF_TOKEN.") from error
