from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition

from guie_core import GuieError, UsageError
from guie_models.heads import (
    MLP,
    PCA,
    BatchNormLinear,
    GeM,
    Linear,
    LinearBatchNormPReLU,
    MultiSampleDropout,
    ParallelLinears,
    Whitened,
)


def test_batch_norm_linear_is_the_recipes_formula() -> None:
    torch.manual_seed(0)
    head = BatchNormLinear(13, 4)
    x = torch.randn(32, 16, dtype=torch.float64) * 20 + 3
    head.double()
    running_mean, running_var = np.zeros(16), np.ones(16)
    weight, bias = head.linear.weight.detach().numpy(), head.linear.bias.detach().numpy()
    for _ in range(2):  # statistics move with each pass
        values = x.numpy()
        expected = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-6) @ weight.T + bias
        np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-9)
        running_mean = 0.9 * running_mean + 0.1 * values.mean(0)
        running_var = 0.9 * running_var + 0.1 * values.var(0, ddof=1)
        x = x * 0.5
    head.eval()
    expected = (x.numpy() - running_mean) / np.sqrt(running_var + 1e-6) @ weight.T + bias
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-9)


def test_batch_norm_linear_has_the_published_shape() -> None:
    head = BatchNormLinear(1024)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {
        "norm.running_mean": (1027,),
        "norm.running_var": (1027,),
        "norm.num_batches_tracked": (),
        "linear.weight": (64, 1027),
        "linear.bias": (64,),
    }


@pytest.mark.parametrize(
    "head", [BatchNormLinear(200, 100, dropout=0.3, size_features=0), Linear(200, 100, dropout=0.3)]
)
def test_dropout_is_before_the_linear_and_in_training_only(head: torch.nn.Module) -> None:
    torch.manual_seed(0)
    seen = []
    head.linear.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[union-attr]
    x = torch.randn(64, 200)
    head.train()(x)
    head.eval()(x)
    assert abs((seen[0] == 0).double().mean() - 0.3) < 0.02
    assert not (seen[1] == 0).any()


def test_a_batch_of_one_trains_nothing() -> None:
    head = BatchNormLinear(4, 2)
    with pytest.raises(UsageError, match="can't train on a batch of 1"):
        head(torch.zeros(1, 7))
    assert head.eval()(torch.zeros(1, 7)).shape == (1, 2)


@pytest.mark.parametrize("head", [BatchNormLinear(4, 2), Linear(4, 2, size_features=3)])
def test_another_width_is_refused(head: torch.nn.Module) -> None:
    with pytest.raises(UsageError, match=r"shape \[B, 7\] \(4 features and 3 size values\); these are \[5, 4\]"):
        head(torch.zeros(5, 4))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="size_features is 2"):
        BatchNormLinear(4, 2, size_features=2)
    with pytest.raises(UsageError, match="out_features 0"):
        Linear(4, 0)
    with pytest.raises(UsageError, match="5 components of 4 features"):
        PCA(4, 5)


def features(rows: int = 400, width: int = 20) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(rows, width)) * np.linspace(5, 0.1, width)) @ random.normal(size=(width, width)) + 7


@pytest.mark.parametrize("rows", [7, 100_000])
def test_pca_is_scikit_learns(rows: int) -> None:
    array = features()
    reference = decomposition.PCA(6, svd_solver="full").fit(array)
    pca = PCA.fit(array, 6, rows=rows)
    np.testing.assert_allclose(pca.variances.numpy(), reference.explained_variance_, rtol=1e-5)
    signs = np.sign(reference.components_[np.arange(6), np.abs(reference.components_).argmax(1)])
    expected = reference.transform(array) * signs
    np.testing.assert_allclose(pca(torch.from_numpy(array).float()).numpy(), expected, atol=2e-3)


def test_pca_reads_memory_maps_and_tensors_alike(tmp_path: Path) -> None:
    array = features().astype(np.float32)
    np.save(tmp_path / "features.npy", array)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    first, second = PCA.fit(mapped, 5, rows=64), PCA.fit(torch.from_numpy(array), 5, rows=64)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


def test_pcas_signs_do_not_depend_on_the_rows_order() -> None:
    array = features()
    shuffled = np.random.default_rng(1).permutation(array)
    torch.testing.assert_close(PCA.fit(array, 6).components, PCA.fit(shuffled, 6).components, atol=1e-5, rtol=0)


def test_pca_refuses_what_has_no_components() -> None:
    with pytest.raises(GuieError, match="two rows"):
        PCA.fit(np.ones((1, 8)), 2)
    array = features()
    array[3, 4] = np.nan
    with pytest.raises(GuieError, match="not finite"):
        PCA.fit(array, 2)


def test_whitening_refuses_directions_in_which_nothing_varies() -> None:
    generator = np.random.default_rng(0)
    few = generator.normal(size=(12, 64)).astype(np.float32) * 1000  # 11 directions
    dependent = np.repeat(generator.normal(size=(200, 8)).astype(np.float32), 2, axis=1)  # 8
    for array, directions in ((few, 11), (dependent, 8)):
        with pytest.raises(GuieError, match=f"vary in {directions} directions"):
            PCA.fit(array, directions + 1, whiten=True)
        out = PCA.fit(array, directions, whiten=True)(torch.from_numpy(array))
        torch.testing.assert_close(out.var(0), torch.ones(directions), rtol=1e-3, atol=0)
        assert PCA.fit(array, directions + 1).out_features == directions + 1  # not divided, they are 0
    with pytest.raises(UsageError, match=r"shape \[N, D\]; these are \[5\]"):
        PCA.fit(np.ones(5), 2)


def test_whitened_pca_is_scikit_learns() -> None:
    array = features()
    reference = decomposition.PCA(6, svd_solver="full", whiten=True).fit(array)
    pca = PCA.fit(array, 6, whiten=True)
    signs = np.sign(reference.components_[np.arange(6), np.abs(reference.components_).argmax(1)])
    out = pca(torch.from_numpy(array).float()).numpy()
    np.testing.assert_allclose(out, reference.transform(array) * signs, atol=2e-3)
    np.testing.assert_allclose(out.std(0, ddof=1), 1.0, rtol=1e-3)


def test_multi_sample_dropout_is_the_mean_over_masks() -> None:
    """The same random numbers, mask by mask, through the linear layer one after the other."""
    head = MultiSampleDropout(30, 4, dropout=0.4, samples=5, size_features=3).double()
    x = torch.randn(7, 33, dtype=torch.float64)
    torch.manual_seed(5)
    found = head(x)
    torch.manual_seed(5)
    masks = torch.rand(5, 7, 33) >= 0.4
    expected = torch.stack([head.linear(x * mask / 0.6) for mask in masks]).mean(0)
    torch.testing.assert_close(found, expected)
    assert torch.equal(head.eval()(x), head.linear(x))
    many = MultiSampleDropout(200, 1, dropout=0.5, samples=200)
    torch.testing.assert_close(many(torch.ones(1, 200)), many.eval()(torch.ones(1, 200)), atol=0.2, rtol=0)


def test_parallel_linears_are_the_mean_of_twenty() -> None:
    head = ParallelLinears(30, 4).double()
    assert (head.weight.shape, head.bias.shape) == ((20, 4, 30), (20, 4))
    x = torch.randn(7, 30, dtype=torch.float64)
    torch.manual_seed(5)
    found = head(x)
    torch.manual_seed(5)
    draws = torch.rand(20, 7, 30)
    outputs = []
    for k in range(20):
        rate = (k + 1) / 100  # .01, .02, ... .20
        outputs.append((x * (draws[k] >= rate) / (1 - rate)) @ head.weight[k].T + head.bias[k])
    torch.testing.assert_close(found, torch.stack(outputs).mean(0), rtol=1e-6, atol=1e-6)
    plain = torch.stack([x @ head.weight[k].T + head.bias[k] for k in range(20)]).mean(0)
    torch.testing.assert_close(head.eval()(x), plain)
    assert float(head.weight.detach().abs().max()) <= 30**-0.5  # each as nn.Linear begins
    assert not torch.equal(head.weight[0], head.weight[1])


@pytest.mark.parametrize("head", [MultiSampleDropout(30, 4, size_features=3), ParallelLinears(30, 4, size_features=3)])
def test_folding_leaves_one_linear_layer(head: torch.nn.Module) -> None:
    folded = head.eval().folded()  # type: ignore[operator]
    assert isinstance(folded, Linear)
    assert (folded.in_features, folded.out_features, folded.size_features) == (30, 4, 3)
    x = torch.randn(5, 33)
    torch.testing.assert_close(folded(x), head(x))


def test_linear_batch_norm_prelu_is_its_formula() -> None:
    torch.manual_seed(0)
    head = LinearBatchNormPReLU(12, 5).double()
    with torch.no_grad():
        head.norm.weight.uniform_(0.5, 2)
        head.norm.bias.normal_()
        head.activation.weight.uniform_(0, 1)
    x = torch.randn(40, 12, dtype=torch.float64)
    z = x.numpy() @ head.linear.weight.detach().numpy().T
    z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * head.norm.weight.detach().numpy() + head.norm.bias.detach().numpy()
    expected = np.where(z > 0, z, z * head.activation.weight.detach().numpy())
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-9)


def test_mlp_is_its_formula() -> None:
    head = MLP(10, 3, hidden=(8, 6), norm="layer", activation="gelu", size_features=3).double().eval()
    x = torch.randn(4, 13, dtype=torch.float64)
    out = x
    for first in (0, 4):
        linear, norm = head.layers[first], head.layers[first + 1]
        out = out @ linear.weight.T  # type: ignore[operator, union-attr]
        out = (out - out.mean(1, keepdim=True)) / torch.sqrt(out.var(1, keepdim=True, correction=0) + norm.eps)  # type: ignore[operator]
        out = 0.5 * out * (1 + torch.erf(out / 2**0.5))
    torch.testing.assert_close(head(x), head.layers[8](out))
    with pytest.raises(UsageError, match="batch of 1"):
        MLP(10, 3)(torch.zeros(1, 10))
    assert MLP(10, 3, norm="none")(torch.zeros(1, 10)).shape == (1, 3)
    assert MLP(10, 3, hidden=())(torch.zeros(1, 10)).shape == (1, 3)


@pytest.mark.parametrize("p", [1.0, 3.0, 50.0])
def test_gem_is_its_formula(p: float) -> None:
    head = GeM(6, 4, p=p).double()
    x = torch.rand(3, 6, 5, 7, dtype=torch.float64) * 20
    values = np.clip(x.numpy(), 1e-6, None)
    pooled = (values**p).mean(axis=(2, 3)) ** (1 / p)
    expected = pooled @ head.linear.weight.detach().numpy().T + head.linear.bias.detach().numpy()
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-6)
    tokens = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(head(tokens), head(x))
    head(x).sum().backward()
    assert torch.isfinite(head.p.grad)


def test_gem_does_not_overflow_where_its_power_would() -> None:
    head = GeM(2, 1, p=40.0)
    pooled = head(torch.full((1, 9, 2), 1e4))
    torch.testing.assert_close(pooled, head.linear(torch.full((1, 2), 1e4)))
    assert torch.isfinite(head(torch.full((1, 9, 2), -1.0))).all()
    with pytest.raises(UsageError, match=r"tokens \[B, N, 2\] or a map"):
        head(torch.zeros(3, 2))


HEADS = [
    *(BatchNormLinear, Linear, LinearBatchNormPReLU, MLP, MultiSampleDropout, ParallelLinears, Whitened),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_scripts_trains_and_takes_sizes(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    head = kind(10, 4, size_features=3)
    x = torch.randn(16, 13)
    head(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    head.eval()
    torch.testing.assert_close(torch.jit.script(head)(x), head(x))
    with pytest.raises(UsageError, match=rf"{kind.__name__} takes features of shape \[B, 13\]"):
        head(torch.zeros(5, 10))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"dropout is 1\.0"):
        Linear(4, 2, dropout=1.0)
    with pytest.raises(UsageError, match="samples is 0"):
        MultiSampleDropout(4, 2, samples=0)
    with pytest.raises(UsageError, match="linears is 0"):
        ParallelLinears(4, 2, linears=0)
    with pytest.raises(UsageError, match="norm is 'group'"):
        MLP(4, 2, norm="group")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="hidden"):
        MLP(4, 2, hidden=(0,))
    with pytest.raises(UsageError, match="p is 0"):
        GeM(4, 2, p=0.0)
    with pytest.raises(UsageError, match="shrinkage is 0"):
        Whitened(4, 2, shrinkage=0.0)


def classes_of(rows: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of classes that differ a little in all directions, and images of them much in some."""
    random = np.random.default_rng(1)
    labels = np.arange(rows) % classes * 3  # with gaps
    noise = random.normal(size=(rows, 3)) @ random.normal(size=(3, width)) * 1.5
    return (
        random.normal(size=(classes, width))[labels // 3] + noise + random.normal(size=(rows, width)) * 0.2 + 5,
        labels,
    )


def start_of(head: Whitened, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The embedding of x [N, E] by a head that has begun with it, in float64."""
    torch.manual_seed(0)
    head.start(torch.from_numpy(x).float(), torch.from_numpy(labels))
    embedding: np.ndarray = head.eval().double()(torch.from_numpy(x)).detach().numpy()
    return embedding


def gram(x: np.ndarray) -> np.ndarray:
    """Scalar products [N, N] of what is centred, of mean length 1: what stays when x is turned and scaled."""
    x = x - x.mean(0)
    products: np.ndarray = x @ x.T / np.square(x).sum(1).mean()
    return products


def whitened_within(x: np.ndarray, labels: np.ndarray, shrinkage: float) -> tuple[np.ndarray, float]:
    """x [N, D], centred and whitened within classes, by SVDs of numpy; and the variance that shrinking adds."""
    apart = x - np.stack([x[labels == label].mean(0) for label in labels])
    _, lengths, axes = np.linalg.svd(apart / np.sqrt(len(x) - len(np.unique(labels))))
    variances = np.zeros(x.shape[1])
    variances[: len(lengths)] = np.square(lengths)
    added = shrinkage * variances.mean()
    return (x - x.mean(0)) @ axes.T / np.sqrt(variances + added), added


@pytest.mark.parametrize("shrinkage", [0.1, 1.0, 30.0])
def test_whitened_begins_as_whitening_within_classes_then_principal_components(shrinkage: float) -> None:
    """Against SVDs by numpy: of what images differ in from their class, then of what is whitened."""
    x, labels = classes_of(90, 12, 15)
    whitened, _ = whitened_within(x, labels, shrinkage)
    _, _, components = np.linalg.svd(whitened, full_matrices=False)
    head = Whitened(12, 5, shrinkage=shrinkage)
    np.testing.assert_allclose(gram(start_of(head, x, labels)), gram(whitened @ components[:5].T), atol=1e-4)
    # of the size of a layer that begins at random: uniform up to 1 / sqrt(D)
    np.testing.assert_allclose(head.linear.weight.detach().square().mean().item(), 1 / (3 * 12), rtol=1e-4)


def test_whitened_is_scikit_learns_pca_where_no_class_has_two_images() -> None:
    x, _ = classes_of(40, 12, 10)
    reference = decomposition.PCA(5, svd_solver="full").fit_transform(x)
    np.testing.assert_allclose(gram(start_of(Whitened(12, 5), x, np.arange(40))), gram(reference), atol=1e-4)


def test_whitened_tells_unseen_classes_apart_better_than_features_do() -> None:
    """What images of a class differ in is the same in all classes; half of these are set aside."""
    x, labels = classes_of(400, 48, 80)
    seen, unseen = labels < 120, labels >= 120

    def found(embedding: np.ndarray) -> float:
        embedding = embedding - embedding.mean(0)
        cosines = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        scores = cosines @ cosines.T - 2 * np.eye(len(cosines))
        return float((labels[unseen][scores.argmax(1)] == labels[unseen]).mean())

    head = Whitened(48, 48)
    start_of(head, x[seen], labels[seen])
    whitened = head(torch.from_numpy(x[unseen])).detach().numpy()
    assert found(x[unseen]) < 0.7 < 0.9 < found(whitened)


def test_few_images_leave_directions_that_keep_lengths() -> None:
    """Six images span five directions. Of the 395 at right angles to them, which nothing but the shrinkage whitens, 195
    are left, drawn at random, and as much longer: squared lengths stay on the average over all of them, and nearly for
    each (Johnson and Lindenstrauss)."""
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(6, 400)), np.arange(6) // 2
    basis = np.linalg.svd(x - x.mean(0))[2]
    seen, unseen = basis[:5], basis[5:]
    whitened, added = whitened_within(x, labels, 1.0)
    spaces = []
    for seed in (0, 1):
        head = Whitened(400, 200)
        torch.manual_seed(seed)
        head.start(torch.from_numpy(x).float(), torch.from_numpy(labels))
        weight = head.linear.weight.detach().double().numpy()
        # the factor of the whole layer, by what it makes of the images themselves
        scale = np.square((x - x.mean(0)) @ weight.T).sum() / np.square(whitened).sum()
        _, lengths, directions = np.linalg.svd(weight @ unseen.T, full_matrices=False)
        np.testing.assert_allclose(np.square(lengths[:195]), scale / added * 395 / 195, rtol=1e-3)
        np.testing.assert_allclose(lengths[195:], 0, atol=1e-4 * lengths[0])
        np.testing.assert_allclose((weight @ seen.T).T @ (weight @ unseen.T), 0, atol=1e-4 * lengths[0] ** 2)
        spaces.append(directions[:195])
        others = random.normal(size=(64, 395))
        ratio = np.square(others @ unseen @ weight.T).sum(1) / np.square(others).sum(1) / (scale / added)
        # of what a random half of 395 coordinates has of a squared length: Beta(195 / 2, 200 / 2)
        deviation = np.sqrt(2 * 200 / 195 / 397)
        assert abs(ratio.mean() - 1) < 5 * deviation / 8
        assert ratio.std() == pytest.approx(deviation, rel=0.4)
    # two draws have in common what random spaces have
    assert np.square(spaces[0] @ spaces[1].T).sum() / 195 == pytest.approx(195 / 395, abs=0.02)


def test_whitened_has_no_more_dimensions_than_features() -> None:
    """All of what is whitened, size values as well."""
    head = Whitened(10, 512, size_features=3)
    assert head.out_features == head.linear.out_features == 13
    x, labels = classes_of(60, 13, 12)
    found = start_of(head, x, labels)
    assert found.shape == (60, 13)
    np.testing.assert_allclose(gram(found), gram(whitened_within(x, labels, 1.0)[0]), atol=1e-4)


def test_whitened_reads_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = classes_of(90, 12, 15)
    whole = start_of(Whitened(12, 5), x, labels)
    monkeypatch.setattr("guie_models.heads.whitened.ROWS", 7)
    np.testing.assert_allclose(gram(start_of(Whitened(12, 5), x, labels)), gram(whole), atol=1e-6)


def test_whitened_refuses_what_tells_nothing() -> None:
    head = Whitened(4, 2)
    with pytest.raises(GuieError, match="two of them at least; there are 1"):
        head.start(torch.ones(1, 4), torch.zeros(1))
    with pytest.raises(GuieError, match="not finite"):
        head.start(torch.full((6, 4), torch.nan), torch.arange(6))
    with pytest.raises(UsageError, match=r"6 rows of features, and labels of shape \[5\]"):
        head.start(torch.ones(6, 4), torch.arange(5))
    with pytest.raises(GuieError, match="all the same"):
        head.start(torch.ones(6, 4), torch.arange(6))
