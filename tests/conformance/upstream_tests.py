"""Builds one test class for each case of the adapter and each upstream mixin; collected by run.py only."""

import os
import unittest
from pathlib import Path

import torch
import upstream
from cases import ModelCase, PipelineCase

PIPELINE_MIXINS = {"pipeline": "PipelineTesterMixin", "pipeline-memory": "MemoryTesterMixin"}
MODEL_MIXINS = {
    "model": "ModelTesterMixin",
    "model-training": "TrainingTesterMixin",
    "model-memory": "MemoryTesterMixin",
    "model-attention": "AttentionTesterMixin",
    "model-attention-backend": "AttentionBackendTesterMixin",
    "model-compile": "TorchCompileTesterMixin",
}
KIND_MIXINS = {
    "autoencoder": ("models.autoencoders.testing_utils", "AutoencoderTesterMixin"),
    "unet": ("models.test_modeling_common", "UNetTesterMixin"),
}
GROUPS = os.environ["CONFORMANCE_GROUPS"].split(",")


def pipeline_config(case: PipelineCase) -> type:
    class Config(upstream.load("pipelines.testing_utils").BasePipelineTesterConfig):
        pipeline_class = case.pipeline_class
        required_input_params_in_call_signature = case.required_params
        batch_input_params = case.batch_params
        optional_input_params = case.optional_params
        output_shape = case.output_shape

        def get_dummy_components(self):
            return case.make_components()

        def get_dummy_inputs(self):
            return case.make_inputs(self.get_generator(0))

    return Config


def legacy_pipeline_config(case: PipelineCase) -> type:
    class Config:
        pipeline_class = case.pipeline_class
        params = case.required_params
        batch_params = case.batch_params
        required_optional_params = case.optional_params
        test_xformers_attention = False

        def get_dummy_components(self):
            return case.make_components()

        def get_dummy_inputs(self, device, seed=0):
            return case.make_inputs(torch.Generator("cpu").manual_seed(seed))

    return Config


def model_config(case: ModelCase) -> type:
    class Config(upstream.load("models.testing_utils").BaseModelTesterConfig):
        model_class = case.model_class
        output_shape = case.output_shape
        different_shapes_for_compilation = case.compiled_grids
        main_input_name = "sample"

        def get_init_dict(self):
            return case.make_config()

        def get_dummy_inputs(self, *args, **kwargs):
            return case.make_inputs(*args, **kwargs)

    return Config


def pipeline_tests(case: PipelineCase):
    """Yield (group, base classes, extra attributes) of each test class for a pipeline."""
    common = upstream.load("pipelines.testing_utils")
    for group, mixin in PIPELINE_MIXINS.items():
        yield group, (pipeline_config(case), getattr(common, mixin)), {}
    if "pipeline-legacy" in GROUPS:
        legacy = upstream.load("pipelines.test_pipelines_common").PipelineTesterMixin
        yield "pipeline-legacy", (legacy_pipeline_config(case), legacy, unittest.TestCase), {}


def model_tests(case: ModelCase):
    """Yield (group, base classes, extra attributes) of each test class for a network."""
    common = upstream.load("models.testing_utils")
    config = model_config(case)
    for group, mixin in MODEL_MIXINS.items():
        base = getattr(common, mixin)
        yield group, (config, base), checkpointing_test(base, case) if group == "model-training" else {}
    if case.kind and f"model-{case.kind}" in GROUPS:
        module, mixin = KIND_MIXINS[case.kind]
        yield f"model-{case.kind}", (config, getattr(upstream.load(module), mixin)), {}


def checkpointing_test(base: type, case: ModelCase) -> dict:
    def test_gradient_checkpointing_is_applied(self):
        base.test_gradient_checkpointing_is_applied(self, expected_set=case.checkpointed_classes)

    return {"test_gradient_checkpointing_is_applied": test_gradient_checkpointing_is_applied}


def build_tests(cases: list) -> dict[str, type]:
    tests = {}
    for case in cases:
        for group, bases, extra in pipeline_tests(case) if isinstance(case, PipelineCase) else model_tests(case):
            if group in GROUPS:
                name = f"Test_{case.name}_{group}".replace("-", "_")
                about = {"conformance_case": case, "conformance_group": group, "__module__": __name__}
                tests[name] = type(name, bases, {**extra, **about})
    return tests


upstream.mount(os.environ["CONFORMANCE_CHECKOUT"])
globals().update(build_tests(upstream.import_file(Path(os.environ["CONFORMANCE_ADAPTER"]), "adapter").CASES))
