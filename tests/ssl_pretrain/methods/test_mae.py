"""MAE against the paper's formulae, computed here in another way."""

import itertools
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from shared.errors import UserError
from shared.training import distributed
from shared.training.distributed import World, replicated
from ssl_pretrain.methods import Step, mae
from ssl_pretrain.optim.optimizers import parameter_groups
from tests.conftest import ENVIRONMENT, free_port

SMALL = mae.MAEConfig(arch="vit_tiny_patch16_224", image_size=64, decoder_dim=32, decoder_depth=2, decoder_heads=4)

FIRST = Step(0, 0, 100)


@pytest.fixture(scope="module")
def small() -> mae.MAE:
    torch.manual_seed(0)
    return SMALL.build()


def images(count: int = 3, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def patches_of(image_CHW: np.ndarray, patch: int = 16) -> np.ndarray:
    """Tokens in reading order; in each the pixels in reading order, channels last."""
    side = image_CHW.shape[1] // patch
    return np.array([
        [image_CHW[:, row * patch + y, column * patch + x] for y, x in np.ndindex(patch, patch)]
        for row, column in np.ndindex(side, side)
    ]).reshape(side * side, -1)  # fmt: skip


def lots(seed: int, count: int, tokens: int = 16) -> np.ndarray:
    """Return the random numbers whose order decides which tokens are hidden: the class token's comes first."""
    torch.manual_seed(seed)
    return torch.rand(count, tokens + 1)[:, 1:].numpy()


def loss_by_hand(model: mae.MAE, image_BCHW: Tensor, noise_BN: np.ndarray, norm_pix: bool) -> float:
    """He et al., section 3: token by token, image by image."""
    vit, decoder = model.encoder.vit, model.decoder
    errors = []
    for image_CHW, noise_N in zip(image_BCHW, noise_BN, strict=True):
        order = np.argsort(noise_N)
        kept, hidden = order[:4], order[4:]  # a quarter of 16 tokens is seen
        tokens = vit.patch_embed(image_CHW[None])[0] + vit.pos_embed[0, 1:]
        seen = torch.stack([vit.cls_token[0, 0] + vit.pos_embed[0, 0], *(tokens[n] for n in kept)])[None]
        for block in vit.blocks:
            seen = block(seen)
        seen = model.embed(vit.norm(seen))[0]
        full = [seen[0], *[decoder.mask_token[0, 0]] * 16]
        for slot, n in enumerate(kept):
            full[n + 1] = seen[slot + 1]
        decoded = torch.stack(full)[None] + decoder.pos_embed
        for block in decoder.blocks:
            decoded = block(decoded)
        predicted = model.predict(decoder.norm(decoded))[0, 1:].numpy()
        target = patches_of(image_CHW.numpy())
        if norm_pix:
            variance = target.var(axis=1, ddof=1, keepdims=True)
            target = (target - target.mean(axis=1, keepdims=True)) / np.sqrt(variance + 1e-6)
        errors += [np.mean((predicted[n] - target[n]) ** 2) for n in hidden]
    return float(np.mean(errors))


@pytest.mark.parametrize("norm_pix", [True, False])
@torch.no_grad()
def test_loss_equals_the_papers_formula(norm_pix: bool):
    torch.manual_seed(0)
    model = mae.MAEConfig(**{**vars(SMALL), "norm_pix_loss": norm_pix}).build()
    noise_BN = lots(7, 3)
    torch.manual_seed(7)
    loss = model.loss([images()], FIRST)
    assert loss.item() == pytest.approx(loss_by_hand(model, images(), noise_BN, norm_pix), rel=1e-5)


def test_a_quarter_is_seen_and_each_image_has_its_own_mask(monkeypatch: pytest.MonkeyPatch, small: mae.MAE):
    masks = []
    reconstruct = small.reconstruct

    def watched(image_BCHW: Tensor, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        masks.append((keep_BK, hidden_BM))
        return reconstruct(image_BCHW, keep_BK, hidden_BM)

    monkeypatch.setattr(small, "reconstruct", watched)
    small.loss([images(8)], FIRST)
    keep_BK, hidden_BM = masks[0]
    assert keep_BK.shape == (8, 1 + 4) and hidden_BM.shape == (8, 12)
    assert (keep_BK == 0).any(dim=1).all()  # the class token is always seen
    assert (torch.cat([keep_BK, hidden_BM], 1).sort(dim=1).values == torch.arange(17)).all()
    assert len({tuple(sorted(row)) for row in hidden_BM.tolist()}) > 4


def test_positions_are_fixed_sines_and_cosines(small: mae.MAE):
    """Half of the channels tell the column, half the row; the class token has none (MAE, models_mae.py)."""
    for embedding, dim in ((small.encoder.vit.pos_embed, 192), (small.decoder.pos_embed, 32)):
        assert not embedding.requires_grad
        omega = 1 / 10000 ** (np.arange(dim // 4) / (dim // 4))
        expected = [np.zeros(dim)]
        for row, column in itertools.product(range(4), range(4)):
            halves = [np.concatenate([np.sin(at * omega), np.cos(at * omega)]) for at in (column, row)]
            expected.append(np.concatenate(halves))
        np.testing.assert_allclose(embedding[0].detach().numpy(), np.array(expected), atol=1e-6)


def test_fresh_weights_are_xaviers(small: mae.MAE):
    for linear in (
        small.encoder.vit.blocks[0].attn.qkv,
        small.embed,
        small.predict,
        small.decoder.blocks[1].mlp.fc1,
    ):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    kernel = small.encoder.vit.patch_embed.proj.weight  # as a linear layer, not as a convolution
    assert 0.95 < kernel.abs().max() / (6 / (192 + 768)) ** 0.5 <= 1
    assert small.encoder.vit.norm.eps == small.decoder.norm.eps == 1e-6


def test_every_trainable_parameter_gets_a_gradient(small: mae.MAE):
    """DDP waits for those that do not."""
    small.loss([images()], FIRST).backward()
    idle = [name for name, p in small.named_parameters() if p.requires_grad and p.grad is None]
    fixed = {name for name, p in small.named_parameters() if not p.requires_grad}
    small.zero_grad()
    assert idle == []
    assert fixed == {"encoder.mask_token", "encoder.vit.pos_embed", "decoder.pos_embed"}


def test_parameter_groups(small: mae.MAE):
    name_of = {id(p): name for name, p in small.named_parameters()}
    decayed, others = ({name_of[id(p)] for p in group} for group in parameter_groups(small))
    assert {"encoder.vit.cls_token", "decoder.mask_token", "encoder.vit.patch_embed.proj.weight"} <= decayed
    assert {"encoder.vit.norm.weight", "predict.bias", "encoder.vit.blocks.3.attn.qkv.bias"} <= others
    assert all(name.endswith(".bias") or ".norm" in name for name in others)
    assert len(decayed | others) == sum(p.requires_grad for p in small.parameters())


def test_loss_is_float32_under_autocast(small: mae.MAE):
    with torch.autocast("cpu", torch.bfloat16):
        loss = small.loss([images()], FIRST)
    assert loss.dtype == torch.float32


@torch.no_grad()
def test_export_loads_strictly_into_timm_and_gives_the_same_features():
    torch.manual_seed(0)
    model = (
        mae.MAEConfig(arch="vit_tiny_patch16_224", decoder_dim=32, decoder_depth=1, decoder_heads=2).build().eval()
    )
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    trunk.load_state_dict(model.export(), strict=True)
    image_BCHW = images(2, 224)
    expected = model.encoder.encode(image_BCHW)  # all tokens seen
    torch.testing.assert_close(trunk.forward_features(image_BCHW), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_perfect_predictions_are_drawn_as_the_original(norm_pix: bool, monkeypatch: pytest.MonkeyPatch):
    model = mae.MAEConfig(**{**vars(SMALL), "norm_pix_loss": norm_pix}).build()
    image_BCHW = images(2)
    target_BNP = torch.from_numpy(np.array([patches_of(x.numpy()) for x in image_BCHW]))
    if norm_pix:
        deviation = (target_BNP.var(dim=2, keepdim=True) + 1e-6).sqrt()
        target_BNP = (target_BNP - target_BNP.mean(dim=2, keepdim=True)) / deviation
    monkeypatch.setattr(
        model,
        "reconstruct",
        lambda x, keep, hidden: torch.stack([t[h - 1] for t, h in zip(target_BNP, hidden, strict=True)]),
    )
    sheet = model.show([image_BCHW], lambda view: ((view + 5) * 25).clamp(0, 255).to(torch.uint8))
    pixels = np.asarray(sheet["reconstruction"]).astype(int)
    masked, reconstructed, original = (pixels[:224, at : at + 224] for at in (0, 228, 456))
    assert np.abs(reconstructed - original).max() <= 2
    assert np.abs(masked - original).max() > 50
    assert isinstance(sheet["reconstruction"], Image.Image)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arch": "resnet50"}, "MAE cannot train resnet50; choose --method.arch from vit_tiny"),
        ({"image_size": 100}, "crops of 100 px do not divide into 16 px tokens"),
    ],
)
def test_networks_it_cannot_build(change: dict, sentence: str):
    with pytest.raises(UserError, match=sentence):
        mae.MAEConfig(**{**vars(SMALL), **change}).build()


def six_steps(world: World) -> dict[str, Tensor]:
    """Weights after six steps on six images with given masks, of which this rank handles its share.

    Plain gradient descent: Adam would blow up the rounding of gradients that are zero, as those of key biases.
    """
    mine = slice(world.rank, None, world.size)
    order = torch.rand(6, 6, 16, generator=torch.Generator().manual_seed(5)).argsort(dim=2) + 1
    class_token = torch.zeros(6, 1, dtype=torch.long)
    torch.manual_seed(0)
    method = SMALL.build()
    model, optimiser = replicated(method, world), torch.optim.SGD(method.parameters(), lr=0.1)
    for step in range(6):
        keep, hidden = torch.cat([class_token, order[step, :, :4]], 1)[mine], order[step, :, 4:][mine]
        with mock.patch.object(mae, "random_token_mask", lambda *_, device: (keep, hidden)):  # noqa: B023
            loss = model([images(6).roll(step, 0)[mine]], FIRST)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {"loss": distributed.mean_over_ranks(loss.detach()), **method.state_dict()}


AS_A_RANK = """
import sys, torch
from shared.training import distributed
from tests.ssl_pretrain.methods.test_mae import six_steps
world = distributed.start()
torch.save(six_steps(world), sys.argv[1])
distributed.stop()
"""


def test_two_ranks_equal_one_with_the_doubled_batch(tmp_path: Path, world: World):
    """Two gloo processes with half of the images each, and this one with all of them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AS_A_RANK, tmp_path / f"{rank}.pt"],
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    expected = six_steps(world)
    assert [process.wait(200) for process in processes] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)
