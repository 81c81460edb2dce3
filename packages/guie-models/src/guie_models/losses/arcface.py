"""ArcFace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.losses.margin_softmax import MarginSoftmax, angular_margin, cosines


class ArcFace(nn.Module):
    """ArcFace (arXiv 1801.07698): softmax cross-entropy over scaled cosines, the target's angle widened by `margin`
    (5th place, point 5).

        loss = mean over i of -log( exp(s cos(theta_iy + m)) / (exp(s cos(theta_iy + m)) + sum over j != y of exp(s
        cos(theta_ij))) )

    Not easy-margin: where theta_iy > pi - m the target's logit is s (cos(theta_iy) - m sin(pi - m)). No label
    smoothing. Class centres are Xavier-uniform, of any length, and normalised where they are used; they are a parameter
    (`centres` [C, E]) and part of the state dictionary.

    forward: embedding [B, E] (not normalised, any floating dtype), labels [B] in 0..C-1 -> scalar. The arithmetic is
    float32 (float64 for float64 input) whatever autocast says. Value and gradient are finite at cosine +-1;
    `guie_models.losses.margin_softmax` states the gradient, and why it is not the one of libraries that clamp the
    cosine (zero there) or that skip acos (straight-through).

    Raises UsageError for wrong shapes or an empty batch, and GuieError for labels out of range: always checked on the
    CPU, where it costs nothing, and with `check_labels=True` on other devices, where it waits for the device.
    """

    def __init__(
        self, embedding_size: int, classes: int, scale: float = 30.0, margin: float = 0.5, check_labels: bool = False
    ) -> None:
        super().__init__()
        if embedding_size < 1 or classes < 1:
            raise UsageError(f"ArcFace: embedding_size is {embedding_size} and classes {classes}; both are 1 or more.")
        if scale <= 0:
            raise UsageError(f"ArcFace: scale is {scale}; it is above 0.")
        if not 0.0 <= margin < 3.14159:
            raise UsageError(f"ArcFace: margin is {margin}; it is an angle in radians, from 0 to below pi.")
        self.embedding_size = embedding_size
        self.classes = classes
        self.scale = float(scale)
        self.margin = float(margin)
        self.check_labels = check_labels
        self.centres = nn.Parameter(torch.empty(classes, embedding_size))
        nn.init.xavier_uniform_(self.centres)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        self._check(embedding, labels)
        with torch.autocast(embedding.device.type, enabled=False):
            embedding, centres = self._exact(embedding)
            loss: Tensor = MarginSoftmax.apply(embedding, centres, labels.long(), self.scale, self.margin)
        return loss

    def logits(self, embedding: Tensor) -> Tensor:
        """scale * cosine with every centre: [B, E] -> [B, C]."""
        self._check(embedding)
        with torch.autocast(embedding.device.type, enabled=False):
            return cosines(*self._exact(embedding)) * self.scale

    def margin_logits(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """`logits` with the margin on the target column, what the loss takes the softmax of (the recipe's validation
        uses them too, point 7)."""
        self._check(embedding, labels)
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = cosines(*self._exact(embedding))
            column = labels.long()[:, None]
            shifted, _ = angular_margin(cosine.gather(1, column), self.margin)
            return cosine.scatter(1, column, shifted) * self.scale

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, classes={self.classes}, scale={self.scale}, margin={self.margin}"

    def _exact(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        return embedding.to(dtype), self.centres.to(dtype)

    def _check(self, embedding: Tensor, labels: Tensor | None = None) -> None:
        if embedding.dim() != 2 or embedding.shape[1] != self.embedding_size:
            raise UsageError(
                f"ArcFace takes embeddings of shape [B, {self.embedding_size}]; these are {list(embedding.shape)}."
            )
        if labels is None:
            return
        if labels.shape != embedding.shape[:1]:
            raise UsageError(
                f"ArcFace takes one label an embedding: {embedding.shape[0]}; there are labels of shape"
                f" {list(labels.shape)}."
            )
        if labels.shape[0] == 0:
            raise UsageError("ArcFace got an empty batch: the mean of no losses doesn't exist.")
        if self.check_labels or labels.device.type == "cpu":
            least, most = int(labels.min()), int(labels.max())
            if least < 0 or most >= self.classes:
                raise GuieError(
                    f"ArcFace has {self.classes} classes, labels 0..{self.classes - 1}; this batch has labels from"
                    f" {least} to {most}. Labels are encoded 0..C-1 over the training rows, and `classes` is their"
                    " number."
                )
