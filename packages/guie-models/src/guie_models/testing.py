"""Tests that every backbone, view, head and loss should pass, to be subclassed with pytest::

    from guie_models.testing import HeadContract

    class TestMyHead(HeadContract):
        @pytest.fixture
        def make(self):
            return lambda: MyHead(in_features=12, out_features=5)

`make` gives a new component each time, with the same arguments. What the tests hold is what `Embedder`, the exporters
and training loops count on.
"""

from __future__ import annotations

import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError, build
from guie_models import _quiet
from guie_models.backbones import Backbone

SIZES = ((1, 1), (1, 50), (50, 1), (33, 20), (21, 64), (40, 40))
"""Height and width of the images that views have to take."""


class _Contract:
    @pytest.fixture
    def make(self) -> Callable[[], Any]:
        raise NotImplementedError(f"{type(self).__name__} needs a fixture 'make': a function that makes the component")

    @pytest.fixture(autouse=True)
    def _seeded(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield


class ViewContract(_Contract):
    """From a decoded image [3, H, W] and a seed to a backbone's input [3, size, size]."""

    #: Whether it is deployed with a model, for which it has to be scriptable. Views of training alone need not.
    scriptable: ClassVar[bool] = True

    def test_any_image_becomes_a_square_of_its_size(self, make: Callable[[], Any]) -> None:
        view = make()
        for height, width in SIZES:
            out = view(_image(height, width), 0)
            assert out.shape == (3, view.size, view.size), f"{height} x {width} became {list(out.shape)}"
            assert out.dtype == torch.float32
            assert out.isfinite().all()

    def test_the_image_is_left_as_it_was(self, make: Callable[[], Any]) -> None:
        image = _image(40, 30)
        before = image.clone()
        make()(image, 0)
        assert torch.equal(image, before)

    def test_floats_of_the_same_range_give_the_same(self, make: Callable[[], Any]) -> None:
        image = _image(21, 30)
        torch.testing.assert_close(make()(image.float(), 3), make()(image, 3))

    def test_image_and_seed_decide(self, make: Callable[[], Any]) -> None:
        view, image = make(), _image(60, 60)
        first = view(image, 1)
        torch.manual_seed(1)
        assert torch.equal(make()(image, 1), first), "it draws from torch's own random state; draw from the seed"
        others = [view(image, seed) for seed in range(2, 12)]
        if getattr(view, "random", False):
            assert not all(torch.equal(other, first) for other in others), "it is random, and no seed changes it"
        else:
            assert all(torch.equal(other, first) for other in others), "a view that seeds change says: random = True"

    def test_other_shapes_are_refused(self, make: Callable[[], Any]) -> None:
        for shape in ((1, 8, 8), (8, 8), (4, 8, 8), (1, 3, 8, 8), (3, 0, 8)):
            with pytest.raises(UsageError):
                make()(torch.zeros(shape, dtype=torch.uint8), 0)

    def test_it_pickles(self, make: Callable[[], Any]) -> None:
        view, image = make(), _image(30, 20)
        assert torch.equal(pickle.loads(pickle.dumps(view))(image, 0), view(image, 0))

    def test_it_scripts(self, make: Callable[[], Any]) -> None:
        if not self.scriptable:
            pytest.skip("of training alone")
        view = make()
        scripted = _scripted(view)
        for height, width in SIZES:
            torch.testing.assert_close(scripted(_image(height, width)), view(_image(height, width)))

    def test_it_keeps_its_arguments(self, make: Callable[[], Any]) -> None:
        _keeps_arguments(make())


class HeadContract(_Contract):
    """From features [B, in_features + size_features] to an embedding [B, out_features]."""

    #: Shape of the input of a batch of B, without B, where it is not [in_features + size_features].
    shape: ClassVar[tuple[int, ...] | None] = None

    @pytest.fixture
    def features(self, make: Callable[[], Any]) -> Tensor:
        """Eight rows."""
        head = make()
        return torch.randn(8, *(self.shape or (head.in_features + head.size_features,)))

    def test_sizes_are_what_they_say(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make()
        assert head.size_features in (0, 3)
        for training in (False, True):
            out = head.train(training)(features)
            assert out.shape == (8, head.out_features)
            assert out.dtype == torch.float32
            assert out.isfinite().all()

    def test_evaluation_is_deterministic_and_row_by_row(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make().eval()
        out = head(features)
        assert torch.equal(head(features), out)
        torch.testing.assert_close(torch.cat([head(row[None]) for row in features]), out)

    def test_gradients_are_finite_and_reach_every_parameter(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make().train()
        features.requires_grad_()
        head(features).square().sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        for name, parameter in head.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"no gradient for {name}"
                assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"

    def test_its_state_is_complete(self, make: Callable[[], Any], features: Tensor) -> None:
        _state_is_complete(make, lambda head: head.train()(features), lambda head: head.eval()(features))

    def test_features_that_are_not_finite_show(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make().eval()
        clean = head(features)
        features[2] = float("nan")
        out = head(features)
        assert out[2].isnan().all(), "NaN features became numbers"
        assert torch.equal(out[[0, 1, 3, 4, 5, 6, 7]], clean[[0, 1, 3, 4, 5, 6, 7]]), "NaN reached other images"

    @pytest.mark.parametrize("rows", [0, 1])
    def test_batches_of_none_or_one(self, make: Callable[[], Any], features: Tensor, rows: int) -> None:
        head = make()
        assert head.eval()(features[:rows]).shape == (rows, head.out_features)
        try:
            out = head.train()(features[:rows])
        except UsageError:
            return  # as heads with batch statistics have to
        assert out.shape == (rows, head.out_features)
        assert out.isfinite().all(), "it trains on a batch of one, and to NaN; refuse it with UsageError"

    def test_another_width_is_refused(self, make: Callable[[], Any], features: Tensor) -> None:
        with pytest.raises(UsageError):
            make()(torch.cat([features, features[..., :1]], -1))

    def test_it_scripts(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make().eval()
        torch.testing.assert_close(_scripted(head)(features), head(features))

    def test_folded_is_the_same(self, make: Callable[[], Any], features: Tensor) -> None:
        head = make().eval()
        if not hasattr(head, "folded"):
            pytest.skip("it has no simpler form")
        torch.testing.assert_close(head.folded()(features), head(features))

    def test_it_keeps_its_arguments(self, make: Callable[[], Any]) -> None:
        _keeps_arguments(make())


class LossContract(_Contract):
    """From embeddings [B, embedding_size] and labels [B] to a scalar."""

    embedding_size: ClassVar[int] = 6
    classes: ClassVar[int] = 5
    #: Whether labels stand for class centres of its own; a loss that compares pairs takes any label.
    owns_classes: ClassVar[bool] = True
    #: Whether the gradient is that of all of the formula; False where it takes a part that depends on the embedding as
    #: a constant, as AdaFace's margins, which is then for tests of its own.
    whole_gradient: ClassVar[bool] = True

    @pytest.fixture
    def batch(self) -> tuple[Tensor, Tensor]:
        """Twelve embeddings, and labels of which each comes twice at least."""
        return torch.randn(12, self.embedding_size), torch.arange(12) % self.classes

    def test_it_is_a_finite_scalar(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        for training in (False, True):
            value = make().train(training)(*batch)
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.isfinite()

    def test_evaluation_is_deterministic(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        loss = make().eval()
        assert torch.equal(loss(*batch), loss(*batch))

    def test_the_gradient_is_that_of_numeric_differences(
        self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]
    ) -> None:
        if not self.whole_gradient:
            pytest.skip("a part of the formula is a constant of the gradient")
        loss = make().double().eval()
        names = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        values = [loss.get_parameter(name).detach().clone().requires_grad_() for name in names]

        def value(embedding: Tensor, *parameters: Tensor) -> Any:
            state = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(loss, state, (embedding, batch[1]))

        embedding = batch[0].double().requires_grad_()
        assert torch.autograd.gradcheck(value, (embedding, *values), eps=1e-6, atol=1e-5, rtol=1e-4)

    def test_finite_at_cosine_one_and_minus_one(self, make: Callable[[], Any]) -> None:
        """Embeddings that are class centres, their opposites, and each other's."""
        loss = make().train()
        rows = [torch.randn(1, self.embedding_size)]
        for parameter in loss.parameters():
            centres = parameter.detach().reshape(-1, parameter.shape[-1]) if parameter.dim() > 1 else parameter[None]
            for matrix in (centres, centres.T):
                if matrix.shape[1] == self.embedding_size:
                    rows.append(matrix)
        some = torch.cat(rows)
        embedding = torch.cat([some, some, -some, 3 * some]).detach().requires_grad_()
        labels = torch.arange(len(embedding)) % self.classes
        value = loss(embedding, labels)
        value.backward()
        assert value.isfinite()
        assert embedding.grad is not None
        assert embedding.grad.isfinite().all(), "the gradient is not finite"
        for name, parameter in loss.named_parameters():
            assert parameter.grad is None or parameter.grad.to_dense().isfinite().all(), f"nor is that of {name}"

    def test_embeddings_that_are_not_finite_show(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        for wrong in (float("nan"), float("inf")):
            embedding = batch[0].clone()
            embedding[3, 0] = wrong
            for training in (False, True):
                value = make().train(training)(embedding, batch[1])
                assert not value.isfinite(), f"{wrong} in, {float(value)} out: a training loop would go on"

    def test_labels_out_of_range_are_refused(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        if not self.owns_classes:
            pytest.skip("any label will do")
        for wrong in (-1, self.classes):
            labels = batch[1].clone()
            labels[5] = wrong
            with pytest.raises(GuieError):
                make()(batch[0], labels)

    def test_an_empty_batch_is_refused(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(UsageError):
            make()(batch[0][:0], batch[1][:0])

    def test_shapes_that_do_not_fit_are_refused(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        embedding, labels = batch
        for x, y in ((embedding[:, 1:], labels), (embedding, labels[1:]), (embedding, labels[:, None])):
            with pytest.raises(UsageError):
                make()(x, y)

    def test_a_batch_of_one(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        embedding = batch[0][:1].clone().requires_grad_()
        value = make().train()(embedding, batch[1][:1])
        value.backward()
        assert value.isfinite()
        assert embedding.grad is not None
        assert embedding.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_embeddings_of_autocast(
        self, make: Callable[[], Any], batch: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> None:
        embedding = batch[0].to(dtype).requires_grad_()
        loss = make().eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(embedding, batch[1])
        value.backward()
        torch.testing.assert_close(value, loss(embedding.detach().float(), batch[1]))
        assert embedding.grad is not None
        assert embedding.grad.dtype == dtype
        assert embedding.grad.isfinite().all()

    def test_descending_makes_it_smaller(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        loss = make().eval()
        embedding = nn.Parameter(batch[0].clone())
        before = float(loss(embedding, batch[1]).detach())
        optimizer = torch.optim.SGD([embedding], lr=0.02)
        for _ in range(50):
            optimizer.zero_grad()
            loss(embedding, batch[1]).backward()
            optimizer.step()
        assert float(loss(embedding, batch[1]).detach()) < before

    def test_its_state_is_complete(self, make: Callable[[], Any], batch: tuple[Tensor, Tensor]) -> None:
        _state_is_complete(make, lambda loss: loss.train()(*batch), lambda loss: loss.eval()(*batch))


class BackboneContract(_Contract):
    """From images [B, 3, h, w], normalised, to features [B, D] or tokens [B, N, D]; `make` gives a `Backbone`."""

    @pytest.fixture
    def images(self, make: Callable[[], Any]) -> Tensor:
        """Three."""
        size = make().image_size
        return torch.randn(3, 3, size, size)

    def test_it_says_what_it_is(self, make: Callable[[], Any]) -> None:
        backbone = make()
        assert isinstance(backbone, Backbone)
        assert backbone.features > 0
        assert backbone.image_size > 0
        assert len(backbone.mean) == len(backbone.std) == 3
        assert all(value > 0 for value in backbone.std)
        assert isinstance(backbone.licence, str)
        assert len(backbone.digest) == 32
        assert make().digest == backbone.digest, "two of the same weights have different digests"

    def test_features_are_what_they_say(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        out = backbone(images)
        assert out.shape[0] == 3
        assert out.shape[-1] == backbone.features
        assert out.dim() in (2, 3)
        assert out.dtype == torch.float32
        assert out.isfinite().all()
        assert torch.equal(backbone(images), out)

    def test_images_do_not_see_each_other(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        out = backbone(images)
        torch.testing.assert_close(torch.cat([backbone(image[None]) for image in images]), out, rtol=1e-4, atol=1e-5)
        images[1] = float("nan")
        mixed = backbone(images)
        assert mixed[1].isnan().any(), "an image of NaN has features like any other"
        torch.testing.assert_close(mixed[[0, 2]], out[[0, 2]], rtol=1e-4, atol=1e-5)

    def test_images_of_another_shape_are_refused(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        for wrong in (images[:0], images[0], images[:, :1], torch.cat([images, images[:, :1]], 1)):
            with pytest.raises(UsageError):
                backbone(wrong)

    def test_it_is_frozen(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        out = backbone(images)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert torch.equal(backbone.train()(images), out), "train() changes a frozen backbone"

    def test_its_last_blocks_train_and_no_others(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        blocks = backbone.blocks()
        names = [name for block in blocks for name in block]
        assert sorted(names) == sorted(name for name, _ in backbone.network.named_parameters())
        backbone.unfreeze(1)
        backbone.train()(images).square().sum().backward()
        for name, parameter in backbone.network.named_parameters():
            assert parameter.requires_grad == (name in blocks[-1]), name
        grads = [backbone.network.get_parameter(name).grad for name in blocks[-1]]
        assert any(grad is not None and bool(grad.any()) for grad in grads), "nothing reaches the last block"

    def test_its_configuration_builds_it_again(self, make: Callable[[], Any], images: Tensor) -> None:
        backbone = make()
        again = build("backbones", backbone.config, weights="none")
        again.load_state_dict(backbone.state_dict())
        assert torch.equal(again(images), backbone(images))

    def test_its_view_gives_what_it_reads(self, make: Callable[[], Any]) -> None:
        backbone = make()
        view = build("views", backbone.view, size=backbone.image_size, mean=backbone.mean, std=backbone.std)
        assert backbone(view(_image(30, 50))[None]).isfinite().all()


def _image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def _scripted(module: nn.Module) -> Any:
    """`module` as TorchScript, written and read back."""
    buffer = io.BytesIO()
    with _quiet.torchscript():
        torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    with _quiet.torchscript():
        return torch.jit.load(buffer)


def _keeps_arguments(module: nn.Module) -> None:
    arguments = inspect.signature(type(module)).parameters
    lost = [name for name in arguments if not hasattr(module, name)]
    assert not lost, f"arguments that guie_models.save can't write down, having no attribute: {lost}"


def _state_is_complete(make: Callable[[], Any], change: Callable[[Any], Any], value: Callable[[Any], Any]) -> None:
    """What `change` and other parameters do to `value` is all in the state dictionary."""
    first = make()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        change(first)
        wanted = value(first)
        state = pickle.loads(pickle.dumps(dict(first.state_dict())))
        second = make()
        if list(second.parameters()):
            assert not torch.equal(value(second), wanted)
        second.load_state_dict(state)
        assert torch.equal(value(second), wanted)


__all__: Sequence[str] = ["BackboneContract", "HeadContract", "LossContract", "ViewContract"]
