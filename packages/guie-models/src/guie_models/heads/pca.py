"""Principal components, fitted instead of trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.heads._checks import check_input, check_sizes


class PCA(nn.Module):
    """Projection on the leading principal components: (x - mean) @ components.T. Not trained: `PCA.fit` makes one from
    a features array.

    whiten: each output is divided by its standard deviation over the fitted features, sqrt(variance + epsilon), so that
    none outweighs the others in a distance (4th and 6th place: PCA to 64 of an embedding that was trained wider).

    forward: x [B, in_features] -> [B, out_features].
    """

    def __init__(self, in_features: int, out_features: int = 64, whiten: bool = False, epsilon: float = 1e-9) -> None:
        super().__init__()
        check_sizes("PCA", in_features, out_features, 0)
        if out_features > in_features:
            raise UsageError(
                f"PCA: {out_features} components of {in_features} features; there are no more components than features."
            )
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = 0
        self.whiten = whiten
        self.epsilon = epsilon
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(in_features))
        self.components: Tensor
        self.register_buffer("components", torch.eye(out_features, in_features))
        self.variances: Tensor
        self.register_buffer("variances", torch.ones(out_features))

    @classmethod
    def fit(cls, features: Any, dim: int = 64, *, whiten: bool = False, epsilon: float = 1e-9, rows: int = 8192) -> PCA:
        """The components of `features` [N, D], a tensor or an array (memory-mapped ones are read `rows` rows at a
        time).

        float64 throughout: mean, then the D x D covariance (divided by N - 1), then its eigenvectors by falling
        variance. Of the two directions of a component the one is taken whose entry of largest magnitude is positive, so
        that two fits agree. `variances` [dim] holds the eigenvalues. Raises GuieError where there are fewer than two
        rows or a value isn't finite, UsageError where features have another shape or dim > D; with `whiten`, which
        divides by them, GuieError where a component's variance is 0 but for rounding: dim > N - 1, or features that
        depend on each other.
        """
        if len(features.shape) != 2:
            raise UsageError(f"PCA is fitted on features of shape [N, D]; these are {list(features.shape)}.")
        count, width = features.shape
        pca = cls(width, dim, whiten, epsilon)
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
        found = variances.flip(0)
        # of the sums over rows, and of features that were float32 before
        rounding = torch.finfo(torch.float32).eps ** 2 * width
        directions = min(int((found > found[0] * rounding).sum()), count - 1)
        if whiten and dim > directions:
            raise GuieError(
                f"PCA: {count} rows of features vary in {directions} directions; whitened to {dim}, the others would be"
                " rounding errors, made as large as the rest. Fit it on more rows, or to fewer dimensions."
            )
        components = vectors.flip(1)[:, :dim].T
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        pca.mean.copy_(mean)
        pca.components.copy_(components * torch.where(largest < 0, -1.0, 1.0))
        pca.variances.copy_(found[:dim])
        return pca

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("PCA", x, self.in_features, 0)
        out = (x - self.mean) @ self.components.T
        return out * torch.rsqrt(self.variances + self.epsilon) if self.whiten else out


def _blocks(features: Any, rows: int) -> Iterator[Tensor]:
    for start in range(0, features.shape[0], rows):
        block = features[start : start + rows]
        if not isinstance(block, Tensor):
            block = torch.from_numpy(np.array(block, dtype=np.float64))  # a copy: memory maps are read-only
        yield block.detach().to(device="cpu", dtype=torch.float64)
