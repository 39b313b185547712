import itertools

import pytest
import torch
from conftest import make_pipeline
from torch import nn
from torch._dynamo.testing import CompileCounter
from training_runs import make_trainer

from voxdiff.small_convolutions import small_convolutions_in_float32


def make_network():
    return nn.Sequential(*(nn.Conv3d(1, 1, 3, stride=stride, padding=1) for stride in (1, 2, 1)))


def run(network, *shape):
    """The precision of each layer's output under autocast."""
    dtypes, hidden = [], torch.rand(1, 1, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in network:
            hidden = layer(hidden)
            dtypes.append(hidden.dtype)
    return dtypes


def test_only_small_inputs_are_convolved_in_32_bit():
    network = make_network()
    with small_convolutions_in_float32(network, network):
        assert run(network, 4, 4, 4) == [torch.bfloat16, torch.bfloat16, torch.float32]
        assert run(network, 4, 8, 2) == [torch.float32] * 3
        assert network.double()(torch.rand(1, 1, 2, 2, 2).double()).dtype == torch.float64
    assert run(network.float(), 2, 2, 2) == [torch.bfloat16] * 3


def test_inputs_smaller_than_the_kernel_are_small():
    wide = nn.Sequential(nn.Conv3d(1, 1, (1, 4, 5), padding=(0, 2, 2)))
    with small_convolutions_in_float32(wide):
        precisions = [run(wide, *shape)[0] for shape in ((1, 4, 5), (3, 3, 5), (3, 4, 4))]
    assert precisions == [torch.bfloat16, torch.float32, torch.float32]


def test_every_call_of_a_convolution_works():
    layer, images = nn.ConvTranspose3d(1, 1, 3, stride=2, padding=1), torch.rand(1, 4, 2, 4)
    expected = layer(images, output_size=(8, 4, 8))
    with small_convolutions_in_float32(layer), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(input=images, output_size=(8, 4, 8)), expected)
    half = nn.Conv3d(1, 1, 3, padding=1).bfloat16()
    with small_convolutions_in_float32(half), torch.autocast("cpu", torch.bfloat16):
        assert half(images).dtype == torch.bfloat16


def test_it_is_undone_after_an_error_and_leaves_a_wrapped_module_alone():
    network = make_network()
    network[2].forward = wrapped = lambda images: images
    with pytest.raises(RuntimeError), small_convolutions_in_float32(network):
        assert "forward" in vars(network[0])
        raise RuntimeError
    assert network[2].forward is wrapped
    assert not any("forward" in vars(layer) for layer in network[:2])


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_gradients_do_not_depend_on_what_memory_held(kind, kernel):
    for sides in itertools.combinations_with_replacement((1, 2, 3, 4), 3 if "3d" in kind.__name__ else 2):
        for stride, padding in itertools.product((1, 2), range(min(kernel, 3))):
            outputs = [(side - 1) * stride - 2 * padding + kernel for side in sides]  # of a transposed convolution
            inputs = [side + 2 * padding - kernel + 1 for side in sides]
            if min(outputs if "Transpose" in kind.__name__ else inputs) > 0:
                layer = kind(16, 16, kernel, stride=stride, padding=padding)
                images = torch.rand(2, 16, *sides)
                expected = gradient_of(layer, images, torch.float32)
                difference = gradient_of(layer, images, torch.bfloat16) - expected
                assert difference.abs().max() < 0.05 * expected.abs().max(), f"{sides}, {layer}"


def gradient_of(layer, images, dtype):
    layer.zero_grad()
    fill_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16), small_convolutions_in_float32(layer):
        output = layer(images)
    output.float().square().mean().backward()
    return layer.weight.grad


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_convolves_so_and_again_in_the_backward_pass(tmp_path, gradient_checkpointing):
    pipeline = make_pipeline()  # levels with 4 and 2 voxels a side
    runs = []
    for layer in pipeline.unet.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(
                lambda layer, inputs, output: runs.append((layer, inputs[0].shape[-1] < layer.kernel_size[-1], output))
            )
    settings = {"mixed_precision": "bf16", "gradient_checkpointing": gradient_checkpointing, "max_train_steps": 1}
    make_trainer(tmp_path, pipeline=pipeline, **settings).train()
    assert all(output.dtype is (torch.float32 if small else torch.bfloat16) for _, small, output in runs)
    small = [layer for layer, small, _ in runs if small]
    assert small and (len(small) > len(set(small))) == gradient_checkpointing


def test_a_compiled_network_is_compiled_once_in_training(tmp_path):
    pipeline, forwards = make_pipeline(), []
    pipeline.unet.conv_in.register_forward_hook(lambda module, *_: forwards.append(vars(module)["forward"]))
    make_trainer(tmp_path, pipeline=pipeline, mixed_precision="bf16", max_train_steps=3).train()
    assert len(forwards) == 3 and len(set(forwards)) == 1  # another one would be another function to the compiler

    network, counter = make_network(), CompileCounter()
    compiled = torch.compile(network, backend=counter)
    with small_convolutions_in_float32(network):
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                compiled(torch.rand(1, 1, 4, 4, 4)).float().sum().backward()
    assert counter.frame_count == 1


def test_a_network_on_another_device_stays_as_it_is():
    network = make_network().to("meta")
    with small_convolutions_in_float32(network):
        assert not any("forward" in vars(layer) for layer in network)


def fill_memory():
    """Leave large numbers in freed memory."""
    sizes = (1000, 7000, 10_000, 20_000, 100_000, 300_000, 500_000)
    junk = [torch.full((size,), 1e30, dtype=dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]
    del junk
