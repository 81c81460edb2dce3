"""What every head checks."""

from __future__ import annotations

from torch import Tensor

from guie_core import UsageError


def check_sizes(head: str, in_features: int, out_features: int, size_features: int) -> None:
    """Raises UsageError for numbers of which no head can be made."""
    if in_features < 1 or out_features < 1:
        raise UsageError(f"{head}: in_features is {in_features} and out_features {out_features}; both are 1 or more.")
    if size_features not in (0, 3):
        raise UsageError(f"{head}: size_features is {size_features}; it is 3 (H/W, H/size, W/size) or 0 (none).")


def check_dropout(head: str, dropout: float) -> None:
    """Raises UsageError for a rate that is none."""
    if not 0.0 <= dropout < 1.0:
        raise UsageError(
            f"{head}: dropout is {dropout}; it is the part of the features that is left out, 0 to below 1."
        )


def check_input(head: str, x: Tensor, in_features: int, size_features: int) -> None:
    """Raises UsageError where `x` is not [B, in_features + size_features]."""
    width = in_features + size_features
    if x.dim() != 2 or x.shape[1] != width:
        raise UsageError(
            f"{head} takes features of shape [B, {width}] ({in_features} features and {size_features} size values);"
            f" these are {list(x.shape)}."
        )


def check_batch(head: str, x: Tensor, training: bool) -> None:
    """Raises UsageError for a batch of one in training, whose variance doesn't exist."""
    if training and x.shape[0] < 2:
        raise UsageError(
            f"{head} can't train on a batch of {x.shape[0]}: batch statistics need two images at least. Drop the last"
            " incomplete batch, or call .eval() to use the running statistics."
        )
