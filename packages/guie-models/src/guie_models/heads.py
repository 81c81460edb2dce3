"""Heads: from a backbone's features, and the image's size values, to the embedding.

Shapes: x [B, in_features + size_features] -> [B, out_features]. Every head has these three numbers as attributes;
`size_features` says how many size values (`guie_models.size_values`) the caller appends to the features: 3 or 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError


def _check_sizes(head: str, in_features: int, out_features: int, size_features: int) -> None:
    if in_features < 1 or out_features < 1:
        raise UsageError(f"{head}: in_features is {in_features} and out_features {out_features}; both are 1 or more.")
    if size_features not in (0, 3):
        raise UsageError(f"{head}: size_features is {size_features}; it is 3 (H/W, H/size, W/size) or 0 (none).")


def _check_input(head: str, x: Tensor, in_features: int, size_features: int) -> None:
    width = in_features + size_features
    if x.dim() != 2 or x.shape[1] != width:
        raise UsageError(
            f"{head} takes features of shape [B, {width}] ({in_features} features and {size_features} size values);"
            f" these are {list(x.shape)}."
        )


class Linear(nn.Module):
    """Dropout, then one linear layer with bias (UniFEx, arXiv 2409.13513; also the 5th place's classifier, point 9).

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width.
    """

    def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 0) -> None:
        super().__init__()
        _check_sizes("Linear", in_features, out_features, size_features)
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_input("Linear", x, self.in_features, self.size_features)
        out: Tensor = self.linear(self.dropout(x))
        return out


class BatchNormLinear(nn.Module):
    """Batch normalisation without affine parameters, dropout, then one linear layer with bias (5th place, point 4).

    The recipe's is `BatchNormLinear(1024, 64)`: BatchNorm1d(1027, eps 1e-6, momentum 0.1), no dropout, Linear(1027,
    64), default initialisation.

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width, and for a
    batch of one in training, whose variance doesn't exist.
    """

    def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 3) -> None:
        super().__init__()
        _check_sizes("BatchNormLinear", in_features, out_features, size_features)
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.norm = nn.BatchNorm1d(in_features + size_features, eps=1e-6, momentum=0.1, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_input("BatchNormLinear", x, self.in_features, self.size_features)
            if self.training and x.shape[0] < 2:
                raise UsageError(
                    f"BatchNormLinear can't train on a batch of {x.shape[0]}: batch statistics need two images at"
                    " least. Drop the last incomplete batch, or call .eval() to use the running statistics."
                )
        out: Tensor = self.linear(self.dropout(self.norm(x)))
        return out


class PCA(nn.Module):
    """Projection on the leading principal components: (x - mean) @ components.T. Not trained: `PCA.fit` makes one from
    a features array.

    forward: x [B, in_features] -> [B, out_features].
    """

    def __init__(self, in_features: int, out_features: int = 64) -> None:
        super().__init__()
        _check_sizes("PCA", in_features, out_features, 0)
        if out_features > in_features:
            raise UsageError(
                f"PCA: {out_features} components of {in_features} features; there are no more components than features."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = 0
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(in_features))
        self.components: Tensor
        self.register_buffer("components", torch.eye(out_features, in_features))
        self.variances: Tensor
        self.register_buffer("variances", torch.ones(out_features))

    @classmethod
    def fit(cls, features: Any, dim: int = 64, *, rows: int = 8192) -> PCA:
        """The components of `features` [N, D], a tensor or an array (memory-mapped ones are read `rows` rows at a
        time).

        float64 throughout: mean, then the D x D covariance (divided by N - 1), then its eigenvectors by falling
        variance. Of the two directions of a component the one is taken whose entry of largest magnitude is positive, so
        that two fits agree. `variances` [dim] holds the eigenvalues. Raises GuieError where there are fewer than two
        rows or a value isn't finite, UsageError where dim > D.
        """
        count, width = features.shape
        pca = cls(width, dim)
        if count < 2:
            raise GuieError(f"PCA needs two rows of features at least; there are {count}.")
        total = torch.zeros(width, dtype=torch.float64)
        for block in _blocks(features, rows):
            total += block.sum(dim=0)
        mean = total / count
        if not bool(torch.isfinite(mean).all()):
            raise GuieError("PCA: the features hold values that are not finite (NaN or infinity).")
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for block in _blocks(features, rows):
            centred = block - mean
            covariance.addmm_(centred.T, centred)
        variances, vectors = torch.linalg.eigh(covariance / (count - 1))  # rising
        components = vectors.flip(1)[:, :dim].T
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        pca.mean.copy_(mean)
        pca.components.copy_(components * torch.where(largest < 0, -1.0, 1.0))
        pca.variances.copy_(variances.flip(0)[:dim])
        return pca

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_input("PCA", x, self.in_features, 0)
        return (x - self.mean) @ self.components.T


def _blocks(features: Any, rows: int) -> Iterator[Tensor]:
    for start in range(0, features.shape[0], rows):
        block = features[start : start + rows]
        if not isinstance(block, Tensor):
            block = torch.from_numpy(np.array(block, dtype=np.float64))  # a copy: memory maps are read-only
        yield block.detach().to(device="cpu", dtype=torch.float64)
