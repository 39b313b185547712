import pytest
import torch
from autoencoders import make_autoencoder, make_kl_autoencoder
from goldens import load_golden
from safetensors.torch import load_file, save_file

from voxdiff import AutoencoderPatchVolume, convert_state_dict
from voxdiff.models import autoencoder_3d
from voxdiff.models.axis_order import from_network, to_network


def volume(*size, batch=1):
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def vae():
    return make_autoencoder()


@pytest.mark.parametrize("factor", ["4x", "8x"])
def test_published_network_agrees_with_the_official_one(factor, tmp_path):
    meta, state, inputs, outputs = load_golden(f"med_autoencoder_{factor}")
    groups = meta["config"]["model"]["num_groups"]
    model = convert_state_dict("med-autoencoder", state, norm_num_groups=groups, patch_size=16)
    model.save_pretrained(tmp_path)
    for vae in (model, AutoencoderPatchVolume.from_pretrained(tmp_path)):
        with torch.no_grad():
            latents = vae.encode(from_network(inputs["volume"], "zxy")).latents
            codes = vae.quantize_latents(latents)
            results = {
                "latent": latents,
                "joint_decode": vae.decode(latents).sample,
                "patch_decode": vae.decode_patches(latents).sample,
            }
            assert vae.decode_codes(codes).sample.equal(results["joint_decode"])
        assert codes.permute(0, 3, 1, 2).equal(outputs["codes"].long())
        for name, result in results.items():
            torch.testing.assert_close(to_network(result, "zxy"), outputs[name], atol=meta["atol"], rtol=0)


def test_the_default_is_the_published_configuration():
    with torch.device("meta"):
        eightfold, fourfold = AutoencoderPatchVolume(), AutoencoderPatchVolume(block_out_channels=(48, 96, 96))
    between = 144
    assert sum(p.numel() for p in eightfold.parameters()) == 15_836_696 + 18_982_081 + between
    assert sum(p.numel() for p in fourfold.parameters()) == 3_928_184 + 4_557_313 + between
    assert eightfold.quantize.embedding.numel() == 65_536
    assert (eightfold.compression, fourfold.compression, eightfold.size_divisor) == (8, 4, 64)
    assert eightfold.latent_shape((512, 256, 64)) == (8, 64, 32, 8)


@pytest.mark.parametrize("axis_order", ["xyz", "zxy"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mark_on_one_axis_stays_there(axis_order, axis):
    vae = make_autoencoder(axis_order=axis_order)
    plain = volume(24, 16, 32)
    marked = plain.clone()
    marked.narrow(2 + axis, 8, 8).add_(1)
    with torch.no_grad():
        latents, moved = vae.encode(plain).latents, vae.encode(marked).latents
        assert latents.shape == (1, 4, 12, 8, 16)
        changes = [(moved - latents).abs()]
        changes.append((vae.decode_patches(moved, False).sample - vae.decode_patches(latents, False).sample).abs())
        joint = (vae.decode(moved, False).sample - vae.decode(latents, False).sample).abs()
    other_axes = [dim for dim in range(5) if dim != 2 + axis]
    for change, cube in zip(changes, (4, 8), strict=True):
        profile = change.amax(other_axes)
        assert (profile[cube : 2 * cube] > 0).all()
        assert not profile[:cube].any() and not profile[2 * cube :].any()
    assert 8 <= joint.mean(other_axes).argmax() < 16


def test_the_network_sees_the_axes_in_its_own_order():
    published, plain = make_autoencoder(axis_order="zxy"), make_autoencoder(axis_order="xyz")
    plain.load_state_dict(published.state_dict())
    sample = volume(24, 16, 8)
    turned = to_network(sample, "zxy")
    with torch.no_grad():
        latents = published.encode(sample).latents
        torch.testing.assert_close(to_network(latents, "zxy"), plain.encode(turned).latents)
        joint = plain.decode(to_network(latents, "zxy")).sample
        torch.testing.assert_close(to_network(published.decode(latents).sample, "zxy"), joint)


@torch.no_grad()
@pytest.mark.parametrize("patches_at_once", [1, 5, 512])
def test_patches_are_encoded_and_decoded_as_if_alone(vae, patches_at_once, monkeypatch):
    monkeypatch.setattr(autoencoder_3d, "_VOXELS_AT_ONCE_ON_CPU", patches_at_once * 8**3)
    sample = volume(24, 16, 16, batch=2)
    latents = vae.encode(sample).latents
    decoded = vae.decode_patches(latents).sample
    for x, y, z in [(0, 0, 0), (16, 8, 0), (8, 0, 8)]:
        cube = sample[1:, :, x : x + 8, y : y + 8, z : z + 8]
        alone = vae.encode(cube).latents
        own = latents[1:, :, x // 2 : x // 2 + 4, y // 2 : y // 2 + 4, z // 2 : z // 2 + 4]
        torch.testing.assert_close(own, alone)
        torch.testing.assert_close(decoded[1:, :, x : x + 8, y : y + 8, z : z + 8], vae.decode(alone).sample)


@torch.no_grad()
def test_without_patch_size_the_whole_volume_is_encoded_at_once(vae):
    whole = make_autoencoder(patch_size=None)
    whole.load_state_dict(vae.state_dict())
    cube, sample = volume(8, 8, 8), volume(16, 8, 8)
    torch.testing.assert_close(whole.encode(cube).latents, vae.encode(cube).latents)
    assert (whole.encode(sample).latents - vae.encode(sample).latents).abs().max() > 1e-3
    assert whole.encode(volume(6, 10, 4)).latents.shape == (1, 4, 3, 5, 2)
    with pytest.raises(ValueError, match="no patch_size"):
        whole.decode_patches(vae.encode(sample).latents)


@torch.no_grad()
@pytest.mark.parametrize("vae", [make_autoencoder(), make_kl_autoencoder()], ids=["vq", "kl"])
def test_slab_decoding_equals_the_whole_decode(vae, monkeypatch):
    latents = torch.randn(1, 4, 6, 5, 8)
    whole = vae.decode(latents).sample
    vae.enable_slab_decoding(max_memory_gb=1)
    monkeypatch.setattr(vae.decoder, "forward", None)
    torch.testing.assert_close(vae.decode(latents).sample, whole, atol=1e-5, rtol=0)
    vae.disable_slab_decoding()
    monkeypatch.undo()
    assert vae.decode(latents).sample.equal(whole)


@torch.no_grad()
def test_decoding_quantises_unless_told(vae):
    latents = vae.encode(volume(8, 8, 8)).latents
    entries = vae.quantize.lookup(vae.quantize_latents(latents))
    assert vae.decode(latents).sample.equal(vae.decode(entries, quantize=False).sample)
    assert (vae.decode(latents).sample - vae.decode(latents, quantize=False).sample).abs().max() > 1e-4


def test_normalisation_is_the_published_formula_and_inverts(vae):
    with torch.no_grad():
        vae.quantize.embedding.clamp_(-1, 3)
        vae.quantize.embedding[0, :2] = torch.tensor([-1.0, 3.0])
    vae.update_latent_range()
    assert (vae.config.latent_min, vae.config.latent_max) == (-1, 3)
    latents = torch.tensor([-1.0, 0, 1, 3, 5]).view(1, 1, 5, 1, 1)
    normal = torch.tensor([-1.0, -0.5, 0, 1, 2]).view(1, 1, 5, 1, 1)
    torch.testing.assert_close(vae.normalize_latents(latents), normal)
    torch.testing.assert_close(vae.denormalize_latents(normal), latents)


def test_a_model_without_latent_range_does_not_normalise():
    vae = AutoencoderPatchVolume(block_out_channels=(4, 4), norm_num_groups=2, num_embeddings=4, patch_size=8)
    for use in (vae.normalize_latents, vae.denormalize_latents):
        with pytest.raises(ValueError, match="update_latent_range"):
            use(torch.zeros(1, 8, 2, 2, 2))


def test_a_latent_range_that_is_not_the_codebook_s_is_refused(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded, info = AutoencoderPatchVolume.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.latent_max == vae.config.latent_max and not info["missing_keys"]
    half = AutoencoderPatchVolume.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.quantize.embedding.dtype == torch.bfloat16
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["quantize.embedding"][3, 1] = 7
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"codebook runs from .* to 7; use weights and config of the same model"):
        AutoencoderPatchVolume.from_pretrained(tmp_path)


def test_the_second_stage_trains_the_decoder_and_leaves_the_codebook(vae):
    vae.freeze_encoder()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in vae.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        vae.eval()
        vae(volume(16, 8, 8))
        vae.train()
        vae(volume(16, 8, 8)).sample.square().mean().backward()
        optimizer.step()
    changed = {name.split(".")[0] for name, tensor in vae.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_the_first_stage_trains_everything(vae):
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    output = vae.train()(volume(8, 8, 8, batch=2), torch.Generator().manual_seed(1))
    (output.sample.square().mean() + output.commitment_loss).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vae.parameters())
    assert not vae.quantize.embedding.equal(before["quantize.embedding"])
    assert 1 <= output.perplexity <= 16
    assert output.sample.shape == (2, 1, 8, 8, 8)


def test_gradient_checkpointing_gives_the_same_gradients(vae):
    vae.quantize.freeze()
    gradients = []
    for enable in (False, True):
        vae.zero_grad()
        vae.enable_gradient_checkpointing() if enable else vae.disable_gradient_checkpointing()
        assert vae.encoder.gradient_checkpointing == vae.decoder.gradient_checkpointing == enable
        vae.train()(volume(16, 8, 8)).sample.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in vae.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
def test_half_precision_stays_close(vae):
    sample = volume(16, 8, 8)
    latents = vae.encode(sample).latents
    decoded = vae.decode(latents, quantize=False).sample
    vae.to(torch.bfloat16)
    for result, reference in (
        (vae.encode(sample.bfloat16()).latents, latents),
        (vae.decode(latents.bfloat16(), quantize=False).sample, decoded),
    ):
        assert result.dtype == torch.bfloat16
        assert (result.float() - reference).abs().max() < 0.05 * reference.abs().max()
    assert vae.decode(latents.bfloat16()).sample.isfinite().all()


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_graph_breaks(vae):
    sample = volume(16, 8, 8)
    latents = vae.encode(sample).latents
    for function, argument in (
        (vae.encode, sample),
        (vae.decode, latents),
        (vae.decode_patches, latents),
        (vae, sample),
    ):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(argument, return_dict=False)[0], function(argument, return_dict=False)[0])


def test_grids_that_do_not_fit_raise(vae):
    with pytest.raises(ValueError, match=r"volume grid is \(16, 20, 8\).*divisible by 8: use 16 or 24 along y"):
        vae.encode(torch.zeros(1, 1, 16, 20, 8))
    with pytest.raises(ValueError, match=r"use 8 along z"):
        vae.latent_shape((16, 16, 4))
    with pytest.raises(ValueError, match=r"latent grid is \(4, 4, 6\).*divisible by 4: use 4 or 8 along z"):
        vae.decode_patches(torch.zeros(1, 4, 4, 4, 6))
    with pytest.raises(ValueError, match=r"it takes \(batch, 1, x, y, z\)"):
        vae.encode(torch.zeros(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"it takes \(batch, 4, x, y, z\)"):
        vae.decode(torch.zeros(1, 3, 4, 4, 4), quantize=False)


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"axis_order": "yxz"}, "allowed are xyz, zxy"),
        ({"block_out_channels": (48, 100)}, "divides every width"),
        ({"patch_size": 20}, "choose a multiple of 8"),
        ({"latent_min": 1.0}, "give latent_min below latent_max, or neither"),
        ({"latent_min": 1.0, "latent_max": 1.0}, "give latent_min below latent_max, or neither"),
    ],
)
def test_bad_configurations_raise(config, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        AutoencoderPatchVolume(**config)


def test_a_code_without_entry_raises(vae):
    with pytest.raises(ValueError, match="entries 0 to 15"):
        vae.decode_codes(torch.full((1, 4, 4, 4), 16))
