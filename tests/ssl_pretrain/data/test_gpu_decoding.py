"""What is decoded where, with torchvision's decoder for the CPU in the place of nvJPEG's."""

import io
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.shards.tar_reader import EncodedImage
from ssl_pretrain.data import gpu_decoding
from ssl_pretrain.data.crops import Crop
from ssl_pretrain.data.gpu_decoding import Drawn, GpuDecoder, pack, require_gpu_decoder
from tests.ssl_pretrain.conftest import jpeg, tissue

CROPS = (Crop(size=32, scale=(0.5, 1.0), count=2),)
CPU = torch.device("cpu")


def drawn(number: int, data: bytes) -> Drawn:
    return Drawn(EncodedImage(f"patch_{number}", data), Path("shard-000000.tar"), (number,))


def cmyk() -> bytes:
    buffer = io.BytesIO()
    tissue(7).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def nvjpeg(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images nvJPEG was given, a call each."""
    calls: list[int] = []
    decode = gpu_decoding._nvjpeg
    monkeypatch.setattr(gpu_decoding, "_nvjpeg", lambda *given: calls.append(len(given[0])) or decode(*given))
    return calls


def test_only_a_jpeg_that_the_gpu_cannot_decode_goes_to_the_cpu(nvjpeg: list[int], capsys: pytest.CaptureFixture):
    """Once it is said which."""
    batch = [drawn(0, jpeg(tissue(0))), drawn(1, cmyk()), drawn(2, jpeg(tissue(2))), drawn(3, cmyk())]
    decoder = GpuDecoder(CROPS, CPU)
    views, undecodable = decoder(pack(batch, CROPS))
    decoder(pack(batch, CROPS))
    assert not undecodable
    assert nvjpeg == [2, 2]
    assert capsys.readouterr().err.count("patch_1 in shard-000000.tar") == 1
    assert [view.shape for view in views] == [(4, 3, 32, 32)] * 2
    like_RGB = GpuDecoder(CROPS, CPU)(pack([drawn(1, jpeg(tissue(7), quality=95))], CROPS)).crops[0]
    assert (views[0][1].float() - like_RGB[0].float()).abs().mean() < 3  # the same picture in its place


def test_what_cuda_says_is_not_taken_for_a_damaged_image(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise RuntimeError("Error while decoding JPEG images: CUDA error: an illegal memory access")

    monkeypatch.setattr(gpu_decoding, "_nvjpeg", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        GpuDecoder(CROPS, CPU)(pack([drawn(0, jpeg(tissue(0)))], CROPS))


def test_neighbours_take_the_place_of_what_cannot_be_decoded():
    """Without a header, and with a whole one; of another size, so that its crops are drawn anew."""
    wide = jpeg(tissue(1).resize((120, 80)))
    batch = [drawn(0, jpeg(tissue(0))[:1000]), drawn(1, wide), drawn(2, b"no image"), drawn(3, jpeg(tissue(3)))]
    views, undecodable = GpuDecoder(CROPS, CPU)(pack(batch, CROPS))
    assert undecodable == ["shard-000000.tar: patch_0", "shard-000000.tar: patch_2"]
    expected, _ = GpuDecoder(CROPS, CPU)(pack([drawn(n, wide) for n in range(3)], CROPS))
    for view, neighbours in zip(views, expected, strict=True):
        assert torch.equal(view[:3], neighbours)


def test_a_batch_of_which_nothing_can_be_decoded_is_named():
    with pytest.raises(UserError, match=r"shard-000000\.tar.*patch_5"):
        GpuDecoder(CROPS, CPU)(pack([drawn(5, jpeg(tissue(0))[:1000])], CROPS))


def test_a_machine_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"--loader\.decode gpu"):
        require_gpu_decoder(CPU)
    require_gpu_decoder(torch.device("cuda"))
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    with pytest.raises(UserError, match=r"--loader\.decode gpu"):
        require_gpu_decoder(torch.device("cuda"))
