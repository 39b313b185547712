import pytest
import torch
from conftest import make_pipeline
from torch import nn
from torch._dynamo.testing import CompileCounter
from training_runs import make_trainer

from voxdiff.small_convolutions import small_convolutions_in_float32


def make_network():
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, stride=2, padding=1), nn.Conv3d(2, 2, 1))


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
        precisions = [run(wide, *shape)[0] for shape in ((3, 4, 5), (3, 3, 5), (3, 4, 4), (2, 4, 5))]
    assert precisions == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


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


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("sides", "kernel", "stride"),
    [((4, 1), 3, 2), ((1, 1, 1), 3, 2), ((2, 4, 4), 3, 1), ((2, 2, 8), 3, 1), ((3, 3, 3), 4, 1), ((4, 4, 4), 5, 1)],
)
def test_gradients_do_not_depend_on_what_memory_held(sides, kernel, stride, transposed):
    kind = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[len(sides)][transposed]
    images = torch.rand(2, 48, *sides)

    def gradient(dtype):
        torch.manual_seed(1)
        layer = kind(48, 48, kernel, stride=stride, padding=kernel // 2)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
            small_convolutions_in_float32(layer),
        ):
            layer(images).float().square().mean().backward()
        return layer.weight.grad

    for _ in range(4):
        fill_memory()
        torch.testing.assert_close(gradient(torch.bfloat16), gradient(torch.float32))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_convolves_so_and_again_in_the_backward_pass(tmp_path, gradient_checkpointing):
    pipeline = make_pipeline()  # levels with 4 and 2 voxels a side
    runs = []
    for name, layer in pipeline.unet.named_modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(
                lambda _, inputs, output, name=name: runs.append((name, min(inputs[0].shape[2:]), output.dtype))
            )
    settings = {"mixed_precision": "bf16", "gradient_checkpointing": gradient_checkpointing, "max_train_steps": 1}
    make_trainer(tmp_path, pipeline=pipeline, **settings).train()
    for _, side, dtype in runs:
        assert dtype is (torch.float32 if side <= 2 else torch.bfloat16)
    small = [name for name, side, _ in runs if side <= 2]
    assert small and (len(small) > len(set(small))) == gradient_checkpointing


def test_a_compiled_network_is_compiled_once_in_training(tmp_path):
    pipeline, forwards = make_pipeline(), set()
    layer = pipeline.unet.conv_in
    layer.register_forward_hook(lambda module, *_: forwards.add(id(module.forward)))
    make_trainer(tmp_path, pipeline=pipeline, mixed_precision="bf16", max_train_steps=3).train()
    assert len(forwards) == 1  # another one each step would be another function to the compiler

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
