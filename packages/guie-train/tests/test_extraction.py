"""Extraction: the network's own features, whatever the batches, the workers, the memory and the dtype."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from guie_core import GuieError
from guie_core.profiles import profile
from guie_datasets import BadImage, ImageRef
from guie_emoji import Emoji
from guie_models import RandomSquareCrop, Squash, TimmBackbone
from guie_train import device
from guie_train.extraction import Extractor, extract, features_of, view_seeds

CPU = torch.device("cpu")
SQUASH = Squash(32, (0.5,) * 3, (0.5,) * 3)
CROP = RandomSquareCrop(32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def refs() -> list[ImageRef]:
    return [row.image for row in Emoji(styles=["google"]).rows()][:37]


def backbone(name: str = "test_vit") -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, weights="none", image_size=32)


def images(refs: list[ImageRef], view: Any = SQUASH, seed: int = 0) -> Tensor:
    from guie_datasets import decode

    return torch.stack([view(torch.from_numpy(decode(ref.read())), seed) for ref in refs])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_features_are_those_of_the_network(name: str, refs: list[ImageRef]) -> None:
    with torch.inference_mode():
        expected = backbone(name).double()(images(refs).double())
    found = features_of(Extractor(backbone(name), CPU, batch_size=8, name="f"), refs, SQUASH, target=32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_row_depends_on_nothing_but_its_image(refs: list[ImageRef]) -> None:
    extractor = Extractor(backbone(), CPU, batch_size=8, name="f")
    alone = features_of(extractor, refs, SQUASH, target=32)
    assert torch.equal(features_of(extractor, refs, SQUASH, target=32, workers=3), alone)
    assert torch.equal(features_of(extractor, refs[16:], SQUASH, target=32), alone[16:])
    assert torch.equal(features_of(extractor, refs[:3], SQUASH, target=32), alone[:3])


def test_bfloat16_is_near_and_its_weights_are_cast_once(refs: list[ImageRef]) -> None:
    expected = features_of(Extractor(backbone(), CPU, batch_size=8, name="f"), refs, SQUASH, target=32)
    extractor = Extractor(backbone(), CPU, compute="bfloat16", batch_size=8, name="f")
    assert {parameter.dtype for parameter in extractor.network.parameters()} == {torch.bfloat16}
    found = features_of(extractor, refs, SQUASH, target=32)
    assert found.dtype == torch.float32
    mean = expected.mean(0)  # what all images share would hide how near they are
    assert torch.nn.functional.cosine_similarity(found - mean, expected - mean).min() > 0.99
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


def test_a_cpu_that_multiplies_bfloat16_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for multiplies, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda answer=multiplies: answer)
        assert device.compute_dtype(profile("cpu")) == dtype
        assert device.compute_dtype(profile("v100-32g")) == "float16"
        assert device.compute_dtype(profile("p100-16g")) == "float32"


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_attention_is_fused() -> None:
    extractor = Extractor(backbone(), CPU, batch_size=2, name="f")
    with Operations() as operations:
        extractor(torch.zeros(2, 3, 32, 32))
    assert any("scaled_dot_product" in name for name in operations.names)
    assert not any("softmax" in name for name in operations.names)


class Hungry(nn.Module):
    """Sums of channels; a batch of more than `most` images is too large for the memory."""

    def __init__(self, most: int, error: RuntimeError | None = None) -> None:
        super().__init__()
        self.most, self.error = most, error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.batches: list[int] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.batches.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return batch.sum((2, 3))


CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to")


@pytest.mark.parametrize("error", [None, CPU_FULL])
def test_out_of_memory_goes_on_with_halves_and_says_so(
    error: RuntimeError | None, refs: list[ImageRef], capsys: pytest.CaptureFixture[str]
) -> None:
    hungry = Hungry(3, error)
    found = features_of(Extractor(hungry, CPU, batch_size=16, name="features train"), refs, SQUASH, target=32)
    torch.testing.assert_close(found, images(refs).sum((2, 3)))
    assert hungry.batches[:3] == [16, 8, 4]
    assert set(hungry.batches[3:]) == {2}
    told = capsys.readouterr().err
    assert "features train: out of memory with 16 images at once; going on with 8" in told
    assert "out of memory with 4 images at once; going on with 2" in told


def test_no_memory_for_one_image_is_an_error_that_says_what_to_do(refs: list[ImageRef]) -> None:
    with pytest.raises(GuieError, match=r"too small for one image .*Tried to allocate.*compute='profile'"):
        features_of(Extractor(Hungry(0), CPU, batch_size=4, name="f"), refs, SQUASH, target=32)


def test_other_errors_are_not_taken_for_want_of_memory(refs: list[ImageRef]) -> None:
    broken = Hungry(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        features_of(Extractor(broken, CPU, batch_size=4, name="f"), refs, SQUASH, target=32)
    assert broken.batches == [4]


def test_views_are_drawn_by_seeds_that_follow_from_the_first(refs: list[ImageRef]) -> None:
    assert view_seeds(5, 1) == [5]
    assert view_seeds(5, 3)[0] == 5
    assert view_seeds(5, 4)[:3] == view_seeds(5, 3)
    assert len({*view_seeds(5, 4), *view_seeds(6, 4)}) == 8
    extractor = Extractor(backbone(), CPU, batch_size=8, name="f")
    batches = list(extract(extractor, refs, CROP, target=32, seed=5, views=3))
    assert [batch.images for batch in batches] == [2] * 18 + [1]  # 8 // 3 at once
    found = np.concatenate([batch.features for batch in batches])
    for view, seed in enumerate(view_seeds(5, 3)):
        one = features_of(extractor, refs, CROP, target=32, seed=seed, workers=2).numpy()
        np.testing.assert_allclose(found[:, view], one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[:, 0], found[:, 1], rtol=1e-3)


def test_more_views_than_fit_a_batch(refs: list[ImageRef]) -> None:
    extractor = Extractor(backbone(), CPU, batch_size=2, name="f")
    found = np.concatenate([b.features for b in extract(extractor, refs[:3], CROP, target=32, views=5)])
    assert found.shape == (3, 5, 64)
    np.testing.assert_allclose(
        found[:, 4],
        features_of(extractor, refs[:3], CROP, target=32, seed=view_seeds(0, 5)[4]).numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_images_that_cannot_be_decoded_have_no_row(refs: list[ImageRef], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(io.BytesIO(b"\x89PNG\r\n\x1a\n junk").getvalue())
    bad = ImageRef(str(damaged))
    mixed = [bad, *refs[:3], bad, bad, bad, bad, refs[3]]  # with a batch of nothing else
    extractor = Extractor(backbone(), CPU, batch_size=4, name="f")
    told: list[int] = []
    batches = list(extract(extractor, mixed, SQUASH, target=32, on_bad=lambda position, error: told.append(position)))
    assert [batch.positions for batch in batches] == [[1, 2, 3], [], [8]]
    assert [batch.images for batch in batches] == [4, 4, 1]
    assert told == [0, 4, 5, 6, 7]
    found = np.concatenate([batch.features[:, 0] for batch in batches if batch.positions])
    np.testing.assert_allclose(found, features_of(extractor, refs[:4], SQUASH, target=32).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadImage, match=r"damaged\.png"):
        list(extract(extractor, mixed, SQUASH, target=32))
