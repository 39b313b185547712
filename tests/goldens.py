"""Golden files: outputs of the official implementations, with weights and inputs made by a frozen rule."""

import base64
import gzip
import json
import sys
from pathlib import Path

from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
sys.path.insert(0, str(FOLDER))

from seeded_weights import seeded_input, seeded_state_dict  # noqa: E402


def load_golden(name):
    """Return ``(meta, official state dict, inputs, outputs)`` of ``golden/<name>.safetensors``."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["golden"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no dict)
    shapes = json.loads(gzip.decompress(base64.b64decode(meta["keys"]))) if meta.get("keys") else {}
    kept = {key[5:]: value for key, value in tensors.items() if key.startswith("kept/")}
    state = seeded_state_dict(shapes, meta["prefix"], meta.get("tied", ()), kept)
    inputs = {key: seeded_input(key, shape, meta["prefix"]) for key, shape in meta["inputs"].items()}
    inputs |= {key[3:]: value for key, value in tensors.items() if key.startswith("in/")}
    return meta, state, inputs, {key[4:]: value for key, value in tensors.items() if key.startswith("out/")}
