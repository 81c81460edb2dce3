"""Every backbone, view, head and loss of guie-models keeps the contract of its kind; and broken ones don't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from guie_core import build
from guie_core.plugins import plugins
from guie_models.testing import BackboneContract, HeadContract, LossContract, ViewContract

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VIEWS: list[dict[str, Any]] = [
    {"type": "Squash", "pad_to_square": True, "center_crop": 0.8},
    {"type": "CenterCrop", "part": 0.9},
    {"type": "RandomSquareCrop"},
]
HEADS: list[dict[str, Any]] = [
    {"type": "BatchNormLinear", "dropout": 0.2},
    {"type": "Linear", "dropout": 0.2, "size_features": 3},
    {"type": "LinearBatchNormPReLU"},
    {"type": "MLP", "hidden": [7]},
    {"type": "MLP", "hidden": [7, 8], "norm": "layer", "activation": "gelu", "dropout": 0.1},
    {"type": "MultiSampleDropout"},
    {"type": "ParallelLinears"},
    {"type": "GeM"},
    {"type": "PCA", "whiten": True},
    {"type": "Whitened", "dropout": 0.2, "size_features": 3},
]
LOSSES: list[dict[str, Any]] = [
    {"type": "ArcFace"},
    {"type": "ArcFace", "sub_centres": 3, "softmax": {"label_smoothing": 0.1, "focal": 1.5}},
    {"type": "ArcFace", "margin": {"start": 0.1, "growth": 0.1, "end": 0.5, "every": 2}},
    {"type": "ArcFace", "margin": {"least": 0.1, "most": 0.5}},
    {"type": "ArcFace", "softmax": {"sample": 0.5, "sparse": True}},
    {"type": "CosFace"},
    {"type": "NormFace"},
    {"type": "ElasticFace"},
    {"type": "ElasticFace", "kind": "cos"},
    {"type": "CurricularFace"},
    {"type": "pml/ArcFaceLoss"},
    {"type": "pml/ProxyAnchorLoss"},
]
CONSTANTS: list[dict[str, Any]] = [{"type": "AdaFace"}]
PAIRS: list[dict[str, Any]] = [
    {"type": "pml/MultiSimilarityLoss"},
    {"type": "pml/TripletMarginLoss", "miner": {"type": "TripletMarginMiner"}},
]


class TestViews(ViewContract):
    @pytest.fixture(params=VIEWS[:2], ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("views", request.param, size=24, mean=MEAN, std=STD)


class TestViewsOfTraining(ViewContract):
    scriptable: ClassVar[bool] = False

    @pytest.fixture(params=VIEWS[2:], ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("views", request.param, size=24, mean=MEAN, std=STD)


class TestHeads(HeadContract):
    @pytest.fixture(params=[head for head in HEADS if head["type"] != "GeM"], ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("heads", request.param, in_features=12, out_features=5)


class TestHeadsOfTokens(HeadContract):
    shape: ClassVar[tuple[int, ...] | None] = (9, 12)

    @pytest.fixture(params=[head for head in HEADS if head["type"] == "GeM"], ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("heads", request.param, in_features=12, out_features=5)


class TestLosses(LossContract):
    @pytest.fixture(params=LOSSES, ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("losses", request.param, embedding_size=6, classes=5, class_counts=[3, 1, 4, 1, 5])


class TestLossesWithConstants(LossContract):
    whole_gradient: ClassVar[bool] = False

    @pytest.fixture(params=CONSTANTS, ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("losses", request.param, embedding_size=6, classes=5)


class TestLossesOfPairs(LossContract):
    owns_classes: ClassVar[bool] = False

    @pytest.fixture(params=PAIRS, ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("losses", request.param, embedding_size=6, classes=5, class_counts=[3, 1, 4, 1, 5])


BACKBONES: list[dict[str, Any]] = [
    {"type": "timm/test_vit", "image_size": 64},
    {"type": "timm/test_vit", "image_size": 64, "output": "tokens"},
    {"type": "timm/test_resnet"},
    {"type": "open_clip/RN50", "image_size": 64},
    {"type": "concat", "backbones": [{"type": "timm/test_vit", "image_size": 64}, {"type": "timm/test_resnet"}]},
]


class TestBackbones(BackboneContract):
    @pytest.fixture(params=BACKBONES, ids=str)
    def make(self, request: pytest.FixtureRequest) -> Callable[[], Any]:
        return lambda: build("backbones", request.param, weights="none")


def test_no_entry_is_left_out() -> None:
    tried = {
        "backbones": BACKBONES,
        "views": VIEWS,
        "heads": HEADS,
        "losses": [*LOSSES, *CONSTANTS, *PAIRS],
    }
    for kind, configs in tried.items():
        names = {config["type"].split("/")[0] for config in configs}
        own = [e for e in plugins().entries(kind) if e.owner and e.owner.distribution == "guie-models"]
        assert {entry.name.split("/")[0] for entry in own} == names


class Forgetful(nn.Module):
    """A head that counts what it has seen outside its state, takes any width, and turns NaN into 0."""

    in_features, out_features, size_features = 12, 5, 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(12, 5))
        self.unused = nn.Parameter(torch.ones(1))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        return x[:, :12].nan_to_num() @ self.weight * self.seen


class Blind(nn.Module):
    """A loss that passes over NaN and labels out of range, and whose gradient is half."""

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        pull = (embedding - labels[:, None]).square().nan_to_num().sum()
        return pull.detach() * 0.5 + pull * 0.5


class Drawing(nn.Module):
    """A view that draws from torch's own state, and changes the image."""

    size = 8

    def forward(self, image: Tensor, seed: int = 0) -> Tensor:
        image[:, 0, 0] = 0
        return image[:, :1, :1].float().expand(3, 8, 8) + torch.rand(3, 8, 8)


def test_broken_ones_do_not_pass() -> None:
    head, features = HeadContract(), torch.randn(8, 12)
    for test in (
        head.test_its_state_is_complete,
        head.test_gradients_are_finite_and_reach_every_parameter,
        head.test_features_that_are_not_finite_show,
    ):
        with pytest.raises(AssertionError):
            test(Forgetful, features.clone())
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        head.test_another_width_is_refused(Forgetful, features)
    loss, batch = LossContract(), (torch.randn(12, 6), torch.arange(12) % 5)
    with pytest.raises(AssertionError, match="a training loop would go on"):
        loss.test_embeddings_that_are_not_finite_show(Blind, batch)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        loss.test_the_gradient_is_that_of_numeric_differences(Blind, batch)
    for refused in (loss.test_labels_out_of_range_are_refused, loss.test_an_empty_batch_is_refused):
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            refused(Blind, batch)
    view = ViewContract()
    for test in (view.test_the_image_is_left_as_it_was, view.test_image_and_seed_decide):
        with pytest.raises(AssertionError):
            test(Drawing)
