import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from voxdiff.training import shared_batch_norm
from voxdiff.training.discriminator import PatchDiscriminator3D
from voxdiff.training.shared_batch_norm import SharedBatchNorm3d, share_batch_norms


def make_norm():
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def make_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 4, 5, 6, generator=generator) * 3 + 1


def half_of_it(rank, store, results):
    """One of two processes: its half of the batch through a shared norm, forwards and backwards."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    norm = make_norm()
    share_batch_norms(network := nn.Sequential(norm))
    half = make_batch()[2 * rank : 2 * rank + 2].requires_grad_()
    output = network(half)
    output.pow(3).sum().backward()
    results.put((rank, output.detach().numpy(), half.grad.numpy(), norm.weight.grad.numpy(), norm.running_var.numpy()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_batch(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=half_of_it, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    halves = sorted((results.get(timeout=120) for _ in processes), key=lambda item: item[0])
    for process in processes:
        process.join()
    norm, batch = make_norm(), make_batch().requires_grad_()
    output = norm(batch)
    output.pow(3).sum().backward()
    outputs, gradients = (torch.cat([torch.from_numpy(half[place]) for half in halves]) for place in (1, 2))
    torch.testing.assert_close(outputs, output.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, batch.grad, rtol=1e-4, atol=1e-3)
    weights = torch.from_numpy(halves[0][3] + halves[1][3])
    torch.testing.assert_close(weights, norm.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(torch.from_numpy(halves[1][4]), norm.running_var)


def test_alone_it_is_batch_norm(monkeypatch):
    monkeypatch.setattr(shared_batch_norm, "all_reduce", lambda tensor: tensor)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    plain, shared = make_norm(), nn.Sequential(make_norm())
    share_batch_norms(shared)
    assert type(shared[0]) is SharedBatchNorm3d
    torch.testing.assert_close(shared(make_batch()), plain(make_batch()), rtol=1e-5, atol=1e-5)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(shared[0].get_buffer(name), buffer)
    torch.testing.assert_close(shared.eval()(make_batch()), plain.eval()(make_batch()), rtol=1e-5, atol=1e-5)


def test_tensors_and_names_stay():
    network = PatchDiscriminator3D(base_channels=2, num_layers=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    share_batch_norms(network)
    assert any(isinstance(module, SharedBatchNorm3d) for module in network.modules())
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], tensor) for name, tensor in before.items())
