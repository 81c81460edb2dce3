"""Heads that average several of themselves in training, and are one linear layer afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.heads._checks import check_dropout, check_input, check_sizes
from guie_models.heads.linear import Linear


class MultiSampleDropout(nn.Module):
    """The mean of one linear layer over `samples` dropout masks of the same features (arXiv 1905.09788; 4th place: five
    samples, 512 dimensions).

        out = mean over k of W (mask_k * x) / (1 - dropout) + b

    The masks are averaged before the product, which is linear: any number of samples costs one product. In evaluation
    it is the linear layer; `folded()` gives that as a `Linear`.

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width.
    """

    def __init__(
        self, in_features: int, out_features: int = 64, dropout: float = 0.5, samples: int = 5, size_features: int = 0
    ) -> None:
        super().__init__()
        check_sizes("MultiSampleDropout", in_features, out_features, size_features)
        check_dropout("MultiSampleDropout", dropout)
        if samples < 1:
            raise UsageError(f"MultiSampleDropout: samples is {samples}; it is 1 or more.")
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.dropout = dropout
        self.samples = samples
        self.linear = nn.Linear(in_features + size_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("MultiSampleDropout", x, self.in_features, self.size_features)
        if self.training and self.dropout > 0:
            kept = torch.rand(self.samples, x.shape[0], x.shape[1], device=x.device) >= self.dropout
            x = x * (kept.to(x.dtype).mean(dim=0) / (1.0 - self.dropout))
        out: Tensor = self.linear(x)
        return out

    def folded(self) -> Linear:
        """The linear layer alone, which shares its weights with this head."""
        return _linear(self, self.linear.weight, self.linear.bias)


class ParallelLinears(nn.Module):
    """The mean of `linears` linear layers, each behind a dropout of its own (3rd place, arXiv 2210.09296: 20 of them,
    rates .01, .02, ... .20).

        out = mean over k of W_k (mask_k * x) / (1 - rate_k) + b_k

    dropout: the first and the last rate; those between are evenly spaced. In evaluation it is one linear layer, with
    the means of weights and biases; `folded()` gives that as a `Linear`.

    forward: x [B, in_features + size_features] -> [B, out_features]. Raises UsageError for another width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 64,
        linears: int = 20,
        dropout: tuple[float, float] = (0.01, 0.2),
        size_features: int = 0,
    ) -> None:
        super().__init__()
        check_sizes("ParallelLinears", in_features, out_features, size_features)
        for rate in dropout:
            check_dropout("ParallelLinears", rate)
        if linears < 1:
            raise UsageError(f"ParallelLinears: linears is {linears}; it is 1 or more.")
        self.in_features = in_features
        self.out_features = out_features
        self.size_features = size_features
        self.linears = linears
        self.dropout = (float(dropout[0]), float(dropout[1]))
        layers = [nn.Linear(in_features + size_features, out_features) for _ in range(linears)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))  # [K, E, D]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))  # [K, E]

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_input("ParallelLinears", x, self.in_features, self.size_features)
        if not self.training:
            return torch.nn.functional.linear(x, self.weight.mean(dim=0), self.bias.mean(dim=0))
        rates = torch.linspace(self.dropout[0], self.dropout[1], self.linears, device=x.device)[:, None, None]
        kept = torch.rand(self.linears, x.shape[0], x.shape[1], device=x.device) >= rates
        masked = x * (kept / (1.0 - rates)).to(x.dtype)  # [K, B, D]
        return torch.baddbmm(self.bias[:, None], masked, self.weight.transpose(1, 2)).mean(dim=0)

    def folded(self) -> Linear:
        """One linear layer with the means of all."""
        return _linear(self, self.weight.mean(dim=0), self.bias.mean(dim=0))


def _linear(head: MultiSampleDropout | ParallelLinears, weight: Tensor, bias: Tensor) -> Linear:
    with torch.device(weight.device):
        folded = Linear(head.in_features, head.out_features, size_features=head.size_features)
    folded.linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    folded.linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return folded.train(head.training)
