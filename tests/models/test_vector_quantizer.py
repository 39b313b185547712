import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from voxdiff.models import vector_quantizer
from voxdiff.models.vector_quantizer import VectorQuantizerEMA

BUFFERS = ("embedding", "cluster_size", "embed_avg")


def make_quantizer(num_embeddings=6, dim=3, **options):
    torch.manual_seed(0)
    return VectorQuantizerEMA(num_embeddings, dim, **options)


def latents(batch=2, dim=3, seed=1):
    return torch.randn(batch, dim, 4, 3, 2, generator=torch.Generator().manual_seed(seed))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def snapshot(quantizer):
    return {name: getattr(quantizer, name).clone() for name in BUFFERS}


def brute_force(quantizer, values):
    rows = values.movedim(1, -1).flatten(0, 3)
    return torch.cdist(rows.double(), quantizer.embedding.double()).argmin(1).view(values.shape[0], *values.shape[2:])


@pytest.mark.parametrize("distances", [1, 350, 2**20])
def test_codes_are_those_of_brute_force_whatever_the_chunk(distances, monkeypatch):
    monkeypatch.setattr(vector_quantizer, "_DISTANCES_AT_ONCE", distances)
    quantizer = make_quantizer(50)
    values = latents()
    codes = quantizer.nearest(values)
    assert codes.dtype == torch.int64
    assert codes.equal(brute_force(quantizer, values))


def test_output_is_the_nearest_entry_and_gradients_pass_straight_through():
    quantizer = make_quantizer().eval()
    values = latents().requires_grad_()
    output = quantizer(values)
    entries = quantizer.lookup(output.codes)
    torch.testing.assert_close(output.latents, entries)
    assert quantizer.quantize(values.detach()).equal(entries)
    (output.latents * 3).sum().backward()
    assert (values.grad == 3).all()


def test_commitment_loss_and_perplexity_are_the_published_formulas():
    quantizer = make_quantizer().eval()
    values = latents().requires_grad_()
    output = quantizer(values)
    torch.testing.assert_close(output.commitment_loss, 0.25 * (values - quantizer.lookup(output.codes)).square().mean())
    shares = torch.bincount(output.codes.flatten(), minlength=6) / output.codes.numel()
    torch.testing.assert_close(output.perplexity, torch.exp(-(shares * torch.log(shares + 1e-7)).sum()))
    output.commitment_loss.backward()
    assert values.grad.abs().sum() > 0


def test_the_first_training_batch_fills_the_codebook_with_distinct_latents():
    quantizer = make_quantizer(20)
    values = latents()
    assert not quantizer.initialized
    quantizer._initialize(vector_quantizer._rows(values), generator())
    rows = values.movedim(1, -1).flatten(0, 3)
    matches = (quantizer.embedding[:, None] == rows).all(2)
    assert (matches.sum(1) == 1).all() and (matches.sum(0) <= 1).all()
    assert quantizer.embed_avg.equal(quantizer.embedding) and (quantizer.cluster_size == 1).all()
    assert quantizer.initialized


def test_too_few_latents_are_repeated_with_a_little_noise():
    quantizer = make_quantizer(200)
    values = latents()
    quantizer._initialize(vector_quantizer._rows(values), generator())
    rows = values.movedim(1, -1).flatten(0, 3)
    distances = torch.cdist(quantizer.embedding, rows).min(1).values
    assert 0 < distances.mean() < 0.03
    assert len(quantizer.embedding.unique(dim=0)) == 200


def test_a_training_batch_moves_the_averages_by_the_published_formula():
    quantizer = make_quantizer(restart_threshold=0.0)
    quantizer(latents(seed=1), generator())
    before = snapshot(quantizer)
    values = latents(seed=2)
    codes = quantizer.nearest(values).flatten()
    quantizer(values)
    rows = values.movedim(1, -1).flatten(0, 3)
    counts = torch.bincount(codes, minlength=6)
    sums = torch.stack([rows[codes == code].sum(0) for code in range(6)])
    used = 0.99 * before["cluster_size"] + 0.01 * counts
    average = 0.99 * before["embed_avg"] + 0.01 * sums
    weights = (used + 1e-7) / (used.sum() + 6e-7) * used.sum()
    torch.testing.assert_close(quantizer.cluster_size, used)
    torch.testing.assert_close(quantizer.embed_avg, average)
    torch.testing.assert_close(quantizer.embedding, average / weights[:, None])


def test_only_entries_in_too_little_use_restart_and_keep_their_averages():
    quantizer = make_quantizer(3)
    quantizer.embedding.copy_(torch.tensor([[0.0, 0, 0], [1, 1, 1], [90, 90, 90]]))
    quantizer.embed_avg.copy_(quantizer.embedding * 5)
    quantizer.cluster_size.copy_(torch.tensor([5.0, 5, 1.001]))
    values = latents()
    quantizer(values)
    assert (quantizer.cluster_size < 1).tolist() == [False, False, True]
    torch.testing.assert_close(quantizer.cluster_size[2], torch.tensor(1.001 * 0.99))
    torch.testing.assert_close(quantizer.embed_avg[2], torch.full((3,), 450 * 0.99))
    rows = values.movedim(1, -1).flatten(0, 3)
    assert [(rows == entry).all(1).any().item() for entry in quantizer.embedding] == [False, False, True]


def test_random_choices_follow_the_generator():
    results = []
    for seed in (3, 3, 4):
        quantizer = make_quantizer()
        torch.randn(seed)
        quantizer(latents(), generator(seed))
        results.append(quantizer.embedding.clone())
    assert results[0].equal(results[1]) and not results[0].equal(results[2])


def test_a_loaded_codebook_is_not_filled_again():
    trained = make_quantizer()
    trained(latents(), generator())
    quantizer = VectorQuantizerEMA(6, 3)
    assert not quantizer.initialized
    quantizer.load_state_dict(trained.state_dict())
    assert quantizer.initialized
    before = snapshot(quantizer)
    quantizer(latents(seed=2) + 40)
    torch.testing.assert_close(quantizer.embed_avg.sum(), 0.99 * before["embed_avg"].sum() + 0.01 * _sum(2, 40))


def _sum(seed, offset):
    return (latents(seed=seed) + offset).sum()


@pytest.mark.parametrize("filled", [False, True])
def test_a_frozen_codebook_never_changes(filled):
    quantizer = make_quantizer()
    if filled:
        quantizer(latents(), generator())
    quantizer.freeze()
    before = snapshot(quantizer)
    quantizer.eval()
    quantizer(latents(seed=2))
    quantizer.train()
    for seed in (3, 4):
        quantizer(latents(seed=seed) + 9)
    assert all(getattr(quantizer, name).equal(before[name]) for name in BUFFERS)


def test_evaluation_changes_nothing():
    quantizer = make_quantizer().eval()
    before = snapshot(quantizer)
    quantizer(latents())
    assert all(getattr(quantizer, name).equal(before[name]) for name in BUFFERS)


def test_autocast_does_not_change_the_codes():
    quantizer = make_quantizer(200)
    values = latents() * 0.01 + 5
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.nearest(values)
    assert codes.equal(quantizer.nearest(values))
    assert quantizer.quantize(values.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("code", [-1, 6])
def test_a_code_without_entry_raises(code):
    codes = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    codes[0, 1, 0, 1] = code
    with pytest.raises(ValueError, match=r"from -?\d to \d, but the codebook has the entries 0 to 5"):
        make_quantizer().lookup(codes)


def test_latents_of_another_width_raise():
    for use in (VectorQuantizerEMA.forward, VectorQuantizerEMA.nearest, VectorQuantizerEMA.quantize):
        with pytest.raises(ValueError, match=r"it takes \(batch, 3, x, y, z\)"):
            use(make_quantizer(), torch.zeros(1, 4, 2, 2, 2))


def _train_share(rank, store, num_embeddings):
    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank, world_size=2)
    quantizer = make_quantizer(num_embeddings)
    for seed in (1, 2, 3):
        perplexity = quantizer(latents(batch=4, seed=seed).chunk(2)[rank], generator(seed)).perplexity
    torch.save([*snapshot(quantizer).values(), perplexity], f"{store}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_codebook_of_one():
    with tempfile.TemporaryDirectory() as store:
        torch.multiprocessing.start_processes(_train_share, (store, 40), nprocs=2, start_method="fork")
        first, second = (torch.load(f"{store}/{rank}.pt") for rank in range(2))
    quantizer = make_quantizer(40)
    for seed in (1, 2, 3):
        perplexity = quantizer(latents(batch=4, seed=seed), generator(seed)).perplexity
    for ours, theirs, alone in zip(first, second, [*snapshot(quantizer).values(), perplexity], strict=True):
        assert ours.equal(theirs)
        torch.testing.assert_close(ours, alone, atol=1e-6, rtol=1e-6)
