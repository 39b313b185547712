"""diffusers resolves voxdiff's components by `["voxdiff", "Class"]`, and `import voxdiff` stays cheap."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest
from conftest import make_pipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, _fetch_class_library_tuple

import voxdiff
from voxdiff.models.base import VolumeModel
from voxdiff.pipelines.base import VolumePipeline
from voxdiff.schedulers import SUPPORTED_SCHEDULERS, make_scheduler, swap_scheduler

VOXDIFF_FIRST = """
import json, sys, time
import torch
started = time.perf_counter()
import voxdiff
result = {"seconds": time.perf_counter() - started}
result["heavy"] = [name for name in ("diffusers", "nibabel", "transformers", "datasets") if name in sys.modules]

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
import voxdiff.pipelines
result["registered"] = "voxdiff" in LOADABLE_CLASSES
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def voxdiff_first():
    process = subprocess.run([sys.executable, "-c", VOXDIFF_FIRST], capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def defined_classes(room, base):
    package = importlib.import_module(f"voxdiff.{room}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, base) and value is not base:
                yield name, value


MODELS = dict(defined_classes("models", VolumeModel))
BASES = {base for model in MODELS.values() for base in model.__mro__[1:]}  # no components of their own
COMPONENTS = {name: model for name, model in MODELS.items() if model not in BASES}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_is_exported_and_recorded_under_the_package_root(name):
    assert getattr(voxdiff, name) is COMPONENTS[name]
    assert _fetch_class_library_tuple(COMPONENTS[name]) == ("voxdiff", name)


@pytest.mark.parametrize(("name", "pipeline"), dict(defined_classes("pipelines", VolumePipeline)).items())
def test_every_pipeline_is_exported(name, pipeline):
    assert getattr(voxdiff, name) is pipeline


def test_what_the_registration_promises_diffusers():
    for base, (save, load) in LOADABLE_CLASSES["voxdiff"].items():
        assert hasattr(getattr(voxdiff, base), save)
        assert hasattr(getattr(voxdiff, base), load)
    # The same contract as for diffusers' own classes: a change there must be noticed.
    assert LOADABLE_CLASSES["voxdiff"].items() <= LOADABLE_CLASSES["diffusers"].items()


def test_the_index_names_the_package_and_the_class(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "WaveletDiffusionPipeline"
    assert index["unet"] == ["voxdiff", "WaveletUNet3DModel"]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SUPPORTED_SCHEDULERS if name != "flow-euler"])
def test_a_swapped_scheduler_keeps_what_the_network_predicts(name, prediction_type):
    trained = make_scheduler("wdm-ddpm", prediction_type=prediction_type)
    for scheduler in (trained, type(trained).from_config(trained.config)):
        swapped = swap_scheduler(scheduler, name)
        assert type(swapped).__name__ == SUPPORTED_SCHEDULERS[name]
        back = swap_scheduler(swapped, "ddpm")
        for key in ("prediction_type", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"):
            assert swapped.config[key] == trained.config[key]
            assert back.config[key] == trained.config[key]
        assert back.config.clip_sample is False


def test_importing_voxdiff_is_lazy(voxdiff_first):
    assert voxdiff_first["heavy"] == []


def test_touching_the_pipelines_registers(voxdiff_first):
    assert voxdiff_first["registered"]
