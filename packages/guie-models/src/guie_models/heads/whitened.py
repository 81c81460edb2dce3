"""A linear head that begins as what the training features tell without training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.heads._checks import check_dropout, check_input, check_sizes

ROWS = 8192  # that are in float64 at once


class Whitened(nn.Module):
    """Dropout, then one linear layer with bias, which `start` sets to a whitening within classes: directions in which
    images of one class differ count less, whatever the class. For sets of few classes, whose head would else learn them
    by heart: begun like this it is better than the features before any training, on classes that nobody has seen too.

    It is akin to WCCN (Hatch, Kajarekar, Stolcke, "Within-class covariance normalization for SVM-based speaker
    recognition", Interspeech 2006), which takes principal components first, whitens within them, and keeps their
    complement; here all features are whitened, and principal components taken of that. The covariance is shrunk towards
    a multiple of the identity, as by Ledoit and Wolf ("A well-conditioned estimator for large-dimensional covariance
    matrices", 2004), but by a share that is given, not estimated.

    Args:
        in_features: D, without size values.
        out_features: E; D + size_features where these are fewer.
        dropout: of features, in training.
        size_features: 3 or 0.
        shrinkage: how much of the identity is added to the covariance within classes, in means of its variances.

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 512,
        dropout: float = 0.0,
        size_features: int = 0,
        shrinkage: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes("Whitened", in_features, out_features, size_features)
        check_dropout("Whitened", dropout)
        if not 0.0 < shrinkage < float("inf"):
            raise UsageError(f"Whitened: shrinkage is {shrinkage}; it is above 0, such as 1.")
        self.in_features = in_features
        self.out_features = min(out_features, in_features + size_features)
        self.size_features = size_features
        self.shrinkage = shrinkage
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features + size_features, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("Whitened", x, self.in_features, self.size_features)
        out: Tensor = self.linear(self.dropout(x))
        return out

    @torch.no_grad()
    def start(self, x: Tensor, labels: Tensor) -> None:
        """Set the layer from training features x [N, in_features + size_features] and their labels [N].

        In float64, with the covariance S of x within classes (divided by N - C), its mean variance v and shrinkage a:

            y = P (S + a v I)^(-1/2) (x - mean)

        where P holds the leading principal components of what is whitened. N images span N - 1 of them at most. Where
        that is fewer than E, the other rows of P are random directions at right angles to them, as long as is needed to
        keep the lengths of what lies there (Johnson and Lindenstrauss, 1984): what sets unseen classes apart need not
        be there among the seen. The weight is multiplied to be of the size of nn.Linear's own, which no cosine
        notices, so that learning rates mean the same for all backbones. Where no class has two images, S is 0, and y
        are the principal components.

        Raises GuieError for fewer than two rows, for rows that are all the same, and for values that aren't finite,
        UsageError for another shape.
        """
        check_input("Whitened", x, self.in_features, self.size_features)
        if labels.shape != x.shape[:1]:
            raise UsageError(
                f"Whitened: there are {len(x)} rows of features, and labels of shape {list(labels.shape)}."
            )
        if len(x) < 2:
            raise GuieError(f"Whitened: what images differ in takes two of them at least; there are {len(x)}.")
        width = x.shape[1]
        mean, within, total = _covariances(x, labels.cpu())
        if not bool(torch.isfinite(total).all()):
            raise GuieError("Whitened: the features hold values that are not finite (NaN or infinity).")
        whitening = _inverse_root(within, self.shrinkage)
        variances, vectors = torch.linalg.eigh(whitening @ total @ whitening)  # rising
        if float(variances[-1]) <= 0:
            raise GuieError(f"Whitened: the features of all {len(x):,} images are all the same.")
        rounding = variances[-1] * torch.finfo(torch.float32).eps ** 2 * width
        known = min(self.out_features, len(x) - 1, int((variances > rounding).sum()))
        directions = vectors.flip(1)[:, :known].T
        if known < self.out_features:
            drawn = torch.randn(width, self.out_features - known, dtype=torch.float64)
            rest, _ = torch.linalg.qr(drawn - directions.T @ (directions @ drawn))
            length = ((width - known) / (self.out_features - known)) ** 0.5
            directions = torch.cat([directions, rest.T * length])
        weight = directions @ whitening
        weight *= (3 * width * weight.square().mean()) ** -0.5
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(-(weight @ mean))


def _covariances(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean [D] of x [N, D], and its covariances [D, D] within classes and in all, in float64 on the CPU."""
    width = x.shape[1]
    classes, members = labels.unique(return_inverse=True)
    counts = members.bincount()
    sums = torch.zeros(len(classes), width, dtype=torch.float64)
    for rows, block in _blocks(x):
        sums.index_add_(0, members[rows], block)
    mean, centres = sums.sum(0) / len(x), sums / counts[:, None]
    within, total = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))
    for rows, block in _blocks(x):
        apart, centred = block - centres[members[rows]], block - mean
        within.addmm_(apart.T, apart)
        total.addmm_(centred.T, centred)
    return mean, within / max(len(x) - len(classes), 1), total / (len(x) - 1)


def _inverse_root(covariance: Tensor, shrinkage: float) -> Tensor:
    """(S + a v I)^(-1/2) of S [D, D], whose mean variance is v; the identity where S is 0."""
    added = shrinkage * covariance.diagonal().mean()
    if float(added) <= 0:
        return torch.eye(len(covariance), dtype=covariance.dtype)
    variances, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * (variances.clamp(min=0) + added).rsqrt()) @ vectors.T
    return root


def _blocks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for first in range(0, len(x), ROWS):
        rows = slice(first, first + ROWS)
        yield rows, x[rows].detach().to(device="cpu", dtype=torch.float64)
