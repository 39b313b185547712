"""The cost of a pipeline call, against operations counted by hand and memory that is known."""

import json
import types

import pytest
import torch
from conftest import make_pipeline, make_unet

from voxdiff.workflows import profile as profile_module
from voxdiff.workflows.profile import PeakResidentMemory, profile_pipeline


class CountingPipe:
    """Stands for any diffusers pipeline: one matrix product and some memory a call."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, megabytes=0):
        self.components = {"unet": torch.nn.Linear(30, 20), "scheduler": object()}
        self.megabytes, self.calls = megabytes, []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        self.components["unet"](torch.ones(7, 30))
        held = torch.ones(self.megabytes * 2**18)
        for _ in range(20 if self.megabytes else 0):
            held.add_(1)


def test_operations_of_a_matrix_product_and_parameters_are_exact():
    report = profile_pipeline(CountingPipe(), repeats=1, steps=4)
    assert report.flops == 2 * 7 * 30 * 20
    assert report.parameters == {"unet": 620}
    assert report.weights_mb == pytest.approx(620 * 4 / 2**20)


def test_operations_of_a_pipeline_are_those_of_its_convolutions_in_every_step():
    pipe = make_pipeline(make_unet(1, 1), wavelet=None)
    steps, counted = 3, []

    def count(layer, inputs, output):
        weight = layer.weight
        macs = output.numel() * weight[0].numel() if weight.ndim == 5 else inputs[0].numel() * weight.shape[0]
        counted.append(2 * macs)

    layers = [m for m in pipe.unet.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    pipe(num_inference_steps=1)
    for hook in hooks:
        hook.remove()
    report = profile_pipeline(pipe, repeats=1, num_inference_steps=steps, batch_size=2)
    assert report.flops == 2 * steps * sum(counted)
    assert report.pipeline == "WaveletDiffusionPipeline"


def test_the_report_is_plain_and_says_how_it_was_called(pipe):
    generator = torch.Generator().manual_seed(0)
    report = profile_pipeline(pipe, repeats=2, num_inference_steps=1, generator=[generator]).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["arguments"] == {"num_inference_steps": 1, "generator": ["Generator"]}
    assert (report["device"], report["dtype"], report["repeats"]) == ("cpu", "float32", 2)
    assert report["versions"]["torch"] == torch.__version__


def test_only_the_timed_calls_are_timed(monkeypatch):
    pipe = CountingPipe()
    clock = iter([10.0, 11.0, 20.0, 24.0, 30.0, 32.0])
    monkeypatch.setattr(profile_module, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    report = profile_pipeline(pipe, repeats=3, warmup=2, steps=1)
    assert (report.seconds_median, report.seconds_min, report.seconds_max) == (2, 1, 4)
    assert pipe.calls == [{"steps": 1}] * 5


def test_peak_memory_is_the_growth_of_the_process():
    # Freed memory that the C library keeps must not hide growth: 30 MB are below its threshold for the system.
    hoard = [torch.ones(30 * 2**18) for _ in range(8)]
    del hoard
    kept = torch.ones(50 * 2**18)
    assert 70 < profile_pipeline(CountingPipe(80), repeats=1).peak_memory_mb < 110
    assert profile_pipeline(CountingPipe(0), repeats=1).peak_memory_mb < 30
    assert kept.sum() == kept.numel()


def test_a_peak_between_start_and_end_is_seen():
    with PeakResidentMemory() as memory:
        before = memory.peak
        held = torch.ones(50 * 2**18)
        for _ in range(20):
            held.add_(1)
        del held
    assert 40 < (memory.peak - before) / 2**20 < 70


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"warmup": 0}])
def test_nothing_to_measure(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        profile_pipeline(CountingPipe(), **arguments)
