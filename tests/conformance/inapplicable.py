"""Which upstream tests cannot judge a class of ours, and why.

Tests that skip themselves for a missing feature (no `guidance_scale`, no `encode_prompt`, ...) need no entry.
"""

INAPPLICABLE = {
    "pipeline-legacy::test_xformers_attention_forwardGenerator_pass": "xformers and CUDA only, deprecated upstream",
    "pipeline-legacy::test_StableDiffusionMixin_component": "only about pipelines deriving from StableDiffusionMixin",
    "pipeline-legacy::test_attention_slicing_forward_pass": "turns the output into a PIL image, 2D only",
}
"""`group::test`, parameters stripped, -> reason."""

_STREAMS = "group offloading with streams needs a device whose backend has streams"
_SEQUENTIAL = "accelerate cannot offload sequentially when the onload device is the CPU (TypeError inside accelerate)"
_DEVICE = "asks accelerate for an accelerator device"

HARDWARE_ONLY = {
    "test_sequential_cpu_offload_forward_pass": _SEQUENTIAL,
    "test_sequential_offload_forward_pass_twice": _SEQUENTIAL,
    "test_cpu_offload_forward_pass_twice": _DEVICE,
    "test_cpu_offload": _DEVICE,
    "test_disk_offload_without_safetensors": _DEVICE,
    "test_disk_offload_with_safetensors": _DEVICE,
    "test_group_offloading": _STREAMS,
    "test_group_offloading_with_layerwise_casting": _STREAMS,
    "test_group_offloading_with_disk": _STREAMS,
    "test_layerwise_casting_memory": "measures accelerator memory",
    "test_compile_with_group_offloading": _STREAMS,
}
"""Tests that stay skipped on a CPU even with `--relax-accelerator`: diffusers' own classes fail them there, too."""
