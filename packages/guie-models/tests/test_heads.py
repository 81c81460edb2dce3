from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition

from guie_core import GuieError, UsageError
from guie_models.heads import PCA, BatchNormLinear, Linear


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
