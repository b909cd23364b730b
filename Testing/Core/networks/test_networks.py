"""The ViT networks against the authors' numbers and the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from HiEndMAECore.models.pretrained import inflate_input_weight, load_encoder
from HiEndMAECore.networks import (
    MAE,
    UNETR,
    HiEndMAE,
    HybridUNETR,
    build_network,
    build_pretraining_model,
    segmentation_architecture,
)
from HiEndMAECore.networks.layers.patches import patchify, unpatchify
from HiEndMAECore.networks.layers.position_embedding import sincos_position_embedding
from HiEndMAECore.networks.layers.vit import ViTEncoder, attention
from HiEndMAECore.networks.masking import num_visible_patches
from HiEndMAECore.networks.variants import list_vit_variants

PARITY = Path(__file__).parents[1] / "parity"
COMMON = {
    "image_size": (16, 16, 16),
    "patch_size": 4,
    "in_channels": 1,
    "encoder_dim": 24,
    "encoder_depth": 12,
    "encoder_heads": 2,
    "decoder_dim": 12,
    "decoder_heads": 2,
}
SMALL = {"encoder_dim": 24, "encoder_depth": 4, "encoder_heads": 2, "feature_size": 4}


@pytest.mark.parametrize(("file", "mask_ratio"), [("tiny_cubic.npz", 0.75), ("tiny_mask90.npz", 0.9)])
def test_hi_end_mae_matches_the_authors_numbers(file: str, mask_ratio: float) -> None:
    from HiEndMAECore.models.authors import load_pretraining_state

    known = np.load(PARITY / file)
    model = HiEndMAE(**COMMON, mask_ratio=mask_ratio, self_blocks=2, cross_stages=3)
    load_pretraining_state(
        model, {"module." + key[3:]: torch.from_numpy(known[key]) for key in known.files if key.startswith("sd/")}
    )
    with torch.no_grad():
        out = model(torch.from_numpy(known["x"]), torch.from_numpy(known["shuffle_indices"]))
        pictures = model.reconstruct_images(torch.from_numpy(known["x"]), out)
    assert float(out.loss) == pytest.approx(float(known["out/loss"]), rel=1e-5)
    masked = out.prediction.shape[1]
    assert masked == known["out/target_masked"].shape[1]
    np.testing.assert_allclose(out.prediction, known["out/pred_all_tokens"][:, -masked:], rtol=1e-5, atol=1e-5)
    for index, name in ((3, "hidden_3"), (6, "hidden_6"), (9, "hidden_9"), (12, "enc_out_12")):
        np.testing.assert_allclose(out.hidden_states[index], known[f"out/{name}"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(patchify(torch.from_numpy(known["x"]), 4), known["out/patches"])
    assert pictures[0].shape == pictures[1].shape == known["x"].shape


def test_position_embedding_matches_the_released_one() -> None:
    known = np.load(PARITY / "tiny_cubic.npz")
    np.testing.assert_allclose(sincos_position_embedding((4, 4, 4), 24), known["sd/encoder_pos_embed"][0], atol=1e-6)
    np.testing.assert_allclose(sincos_position_embedding((4, 4, 4), 12), known["sd/decoder_pos_embed"][0], atol=1e-6)


def test_unpatchify_inverts_patchify() -> None:
    volume = torch.rand(2, 3, 8, 12, 4)
    patches = patchify(volume, 4)
    assert patches.shape == (2, 6, 192)
    assert torch.equal(patches[:, 1, :3], volume[:, :, 0, 4, 0])  # second patch is the next along w; channels innermost
    assert torch.equal(unpatchify(patches, (2, 3, 1), 4), volume)


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(1000, 0.9, 100), (1000, 0.8, 200), (64, 0.9, 6), (512, 0.75, 128)]
)
def test_num_visible_patches_is_exact_where_floats_are_not(patches: int, ratio: float, visible: int) -> None:
    assert num_visible_patches(patches, ratio) == visible


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.999])
def test_num_visible_patches_refuses_a_mask_of_all_or_nothing(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        num_visible_patches(64, ratio)


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_cross_stages_query_deep_layers_first_and_train_every_parameter(stages: int) -> None:
    torch.manual_seed(0)
    model = HiEndMAE(**COMMON, self_blocks=8 - 2 * stages, cross_stages=stages)
    assert model.stage_layers == (9, 6, 3)[:stages]
    out = model(torch.rand(1, 1, 16, 16, 16))
    out.loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []  # nothing is built that is not trained (it would stall DDP)


def test_mae_equals_hi_end_mae_without_stages() -> None:
    torch.manual_seed(0)
    mae, plain = MAE(**COMMON, self_blocks=8), HiEndMAE(**COMMON, self_blocks=8, cross_stages=0)
    plain.load_state_dict(mae.state_dict())
    volume, order = torch.rand(2, 1, 16, 16, 16), torch.rand(2, 64).argsort(1)
    assert torch.equal(mae(volume, order).loss, plain(volume, order).loss)
    assert len(mae.decoder.blocks) == 8


def test_attention_in_bf16_equals_the_fused_form() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8) for tokens in (7, 9, 9))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    plain = attention(*(part.bfloat16().requires_grad_() for part in (q, k, v)))
    assert torch.allclose(plain.float(), exact, atol=0.03)
    assert torch.equal(attention(q, k, v), exact)


def test_random_masking_differs_between_crops_of_a_batch() -> None:
    model = HiEndMAE(**COMMON)
    order = model(torch.rand(4, 1, 16, 16, 16)).permutation
    assert len({tuple(row[: model.visible].sort().values.tolist()) for row in order}) == 4


def test_reconstruction_keeps_visible_patches_and_targets_of_air_are_zero() -> None:
    model = HiEndMAE(**COMMON)
    volume = torch.zeros(1, 1, 16, 16, 16)
    out = model(volume)
    assert float(out.loss.detach()) == pytest.approx(float(out.prediction.detach().square().mean()))
    volume = torch.rand(1, 1, 16, 16, 16)
    out = model(volume)
    masked, reconstructed = model.reconstruct_images(volume, out)
    seen = masked != 0
    assert int(seen.sum()) == 16 * 64
    assert torch.equal(reconstructed[seen], volume[seen])


@pytest.mark.parametrize(
    ("patch", "size"),
    [(16, (32, 32, 32)), (12, (24, 36, 24)), (8, (24, 16, 32)), (6, (12, 18, 12)), (4, (8, 8, 12)), (5, (10, 10, 5))],
)
def test_unetr_accepts_every_patch_size_and_anisotropic_crops(patch: int, size: tuple[int, int, int]) -> None:
    network = UNETR(image_size=size, patch_size=patch, in_channels=2, classes=3, **SMALL)
    assert network(torch.rand(1, 2, *size)).shape == (1, 3, *size)


def test_unetr_accepts_other_sizes_than_its_own() -> None:
    network = UNETR(image_size=(16, 16, 16), patch_size=8, classes=2, **SMALL).eval()
    assert network(torch.rand(1, 1, 24, 16, 32)).shape == (1, 2, 24, 16, 32)


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_hybrid_unetr_reads_the_image_and_every_encoder_state(patch: int) -> None:
    network = HybridUNETR(image_size=(2 * patch,) * 3, patch_size=patch, in_channels=2, classes=3, **SMALL)
    volume = torch.rand(2, 2, 3 * patch, 2 * patch, 4 * patch)
    logits = network(volume)
    assert logits.shape == (2, 3, 3 * patch, 2 * patch, 4 * patch)
    logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    depth = network.encoder.depth
    with torch.no_grad():  # every state that it reads changes what comes out
        for block in (network.encoder.feature_layers[0] - 1, depth - 1):
            network.encoder.blocks[block].mlp.fc2.bias += torch.randn_like(network.encoder.blocks[block].mlp.fc2.bias)
            changed = network(volume)
            assert not torch.allclose(changed, logits)
            logits = changed


def test_hybrid_unetr_refuses_a_patch_that_is_no_power_of_two() -> None:
    with pytest.raises(ValueError, match="a patch of 12 voxels"):
        HybridUNETR(image_size=(24, 24, 24), patch_size=12, classes=2, **SMALL)


def test_unetr_has_as_many_parameters_as_the_authors_network() -> None:
    with torch.device("meta"):
        network = build_network(segmentation_architecture("hi_end_mae_vit_large_12p", classes=14))
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    assert encoder == 342_638_592
    assert sum(parameter.numel() for parameter in network.parameters()) - encoder == 361_234_286 - 343_423_488


def test_encoder_computes_the_same_in_pretraining_and_fine_tuning() -> None:
    torch.manual_seed(0)
    model = HiEndMAE(**COMMON)
    network = UNETR(**{k: v for k, v in COMMON.items() if k[:7] != "decoder"}, classes=2, feature_size=4)
    load_encoder(network, model.encoder.state_dict())
    volume = torch.rand(2, 1, 16, 16, 16)
    fine_tuning = network.encoder(volume)
    pretraining = model.encoder(volume, torch.arange(64).repeat(2, 1))
    for index, state in pretraining.items():
        torch.testing.assert_close(fine_tuning[index], state)


def test_unetr_without_class_token_is_the_authors_network() -> None:
    model = HiEndMAE(**COMMON)
    sizes = {k: v for k, v in COMMON.items() if k[:7] != "decoder"}
    network = UNETR(**sizes, classes=2, feature_size=4, class_token=False, norm_eps=1e-5)
    load_encoder(network, model.encoder.state_dict())
    assert network.encoder(torch.rand(1, 1, 16, 16, 16))[12].shape == (1, 64, 24)
    assert network.encoder.norm.eps == 1e-5


def test_inflated_patch_embedding_gives_the_same_tokens_for_equal_channels() -> None:
    one = ViTEncoder(image_size=(8, 8, 8), patch_size=4, in_channels=1, dim=24, depth=4, heads=2)
    four = ViTEncoder(image_size=(8, 8, 8), patch_size=4, in_channels=4, dim=24, depth=4, heads=2)
    state = one.state_dict()
    state["patch_embed.proj.weight"] = inflate_input_weight(state["patch_embed.proj.weight"], 4)
    four.load_state_dict(state)
    volume = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(four(volume.expand(-1, 4, -1, -1, -1))[4], one(volume)[4])


def test_every_vit_variant_builds_a_pretraining_and_a_segmentation_network() -> None:
    for name in list_vit_variants():
        with torch.device("meta"):
            model = build_pretraining_model(name)
            network = build_network(segmentation_architecture(name, classes=3))
        assert model.encoder.depth == network.encoder.depth == 12


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_size": (16, 16, 18)}, "not divisible into patches of 4"),
        ({"encoder_dim": 20}, "divisible by 6"),
        ({"encoder_heads": 5}, "divisible by 5 heads"),
        ({"encoder_depth": 3}, "too shallow"),
        ({"cross_stages": 4}, "cross_stages is 4"),
    ],
)
def test_hi_end_mae_with_impossible_sizes_names_the_value(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        HiEndMAE(**{**COMMON, **change})
