"""What every loss with class centres has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as rows_of
from torch.nn.functional import normalize

from guie_core import UsageError
from guie_core.signature import convert
from guie_models.losses.divided import Divided, Peers
from guie_models.losses.margin_softmax import (
    Softmax,
    angular_margin,
    check_range,
    check_shapes,
    cosines,
    margin_softmax,
)


@dataclass(frozen=True, kw_only=True)
class ScheduledMargin:
    """A margin that grows: min(end, start + growth * n) (2nd place: .3, .1 an epoch, up to .8).

    n is the epoch that the training loop tells with `loss.set_epoch(epoch)`, counted from 0; or, with `every`, the
    number of times that a training batch has passed the loss, divided by it and rounded down, which needs no help of
    the loop (SAM passes twice a batch). Either is part of the state dictionary, as `progress`.
    """

    start: float
    growth: float
    end: float
    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every is {self.every}; it is a number of batches, or 0: an epoch, told by set_epoch")
        if not (self.end - self.start) * self.growth >= 0:  # written so that NaN is refused
            raise ValueError(
                f"a margin that starts at {self.start} and grows by {self.growth} never gets to {self.end}"
            )


@dataclass(frozen=True, kw_only=True)
class ClassMargins:
    """A margin for each class, the larger the fewer images it has (4th, 6th and 10th place; arXiv 2010.05350):

        m[c] = least + (most - least) (r[c] - min r) / (max r - min r),  r[c] = n[c]^power

    with n the images of each class in training, `class_counts` of the loss; classes of one size all get `least`. They
    are part of the state dictionary, as `class_margins` [C].
    """

    least: float
    most: float
    power: float = -0.25

    def of(self, counts: Tensor) -> Tensor:
        """[C] of the number of images of each class [C]."""
        rank = counts.double() ** self.power
        spread = rank.max() - rank.min()
        part = (rank - rank.min()) / torch.where(spread > 0, spread, 1.0)
        return (self.least + (self.most - self.least) * part).float()


Margin = float | ScheduledMargin | ClassMargins


class MarginLoss(nn.Module):
    """Softmax cross-entropy over scaled cosines with class centres, a margin on the target.

    Losses differ by `margins`; `guie_models.losses.margin_softmax.margin_softmax` states value and gradient of them
    all.

    forward: embedding [B, E] (not normalised, any floating dtype), labels [B] in 0..C-1 -> scalar. The arithmetic is
    float32 (float64 for float64 input) whatever autocast says, but for `softmax.products`. Value and gradient are
    finite at cosine +-1; an embedding that isn't finite makes both NaN, which optimisers and training loops look for.

    Class centres are Xavier-uniform, of any length, and normalised where they are used; they are a parameter (`centres`
    [C, E], or [K, C, E] with K = `sub_centres` above 1, of which the nearest counts: sub-centre ArcFace, ECCV 2020) and
    part of the state dictionary.

    Args:
        embedding_size: E.
        classes: C.
        scale: what cosines are multiplied by.
        margin: a number, or ScheduledMargin or ClassMargins, or a dict of the arguments of one.
        sub_centres: K.
        class_counts: images of each class in training [C]; for ClassMargins alone.
        softmax: how the cross-entropy is taken: a Softmax, or a dict of its arguments.
        check_labels: labels out of range are always an error on the CPU, where it costs nothing to see them; with
            True on other devices too, where it waits for the device.

    Raises:
        UsageError: settings that can't be, wrong shapes or an empty batch.
        GuieError: labels out of range.
    """

    margin_range = (0.0, math.pi)
    margin_unit = "an angle in radians, from 0 to below pi"

    def __init__(
        self,
        embedding_size: int,
        classes: int,
        scale: float,
        margin: Margin,
        sub_centres: int = 1,
        class_counts: Sequence[int] | Tensor | None = None,
        softmax: Softmax | None = None,
        check_labels: bool = False,
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        if embedding_size < 1 or classes < 1:
            raise UsageError(
                f"{self._name}: embedding_size is {embedding_size} and classes {classes}; both are 1 or more."
            )
        if not 0 < scale < math.inf:
            raise UsageError(f"{self._name}: scale is {scale}; it is above 0.")
        if not 1 <= sub_centres <= 1000:
            raise UsageError(f"{self._name}: sub_centres is {sub_centres}; it is 1 to 1000.")
        self.embedding_size = embedding_size
        self.classes = classes
        self.scale = float(scale)
        self.margin: Margin = self._setting("margin", Margin, margin)
        self.sub_centres = sub_centres
        self.softmax: Softmax = self._setting("softmax", Softmax | None, softmax) or Softmax()
        self.check_labels = check_labels
        if self.softmax.sample < 1.0 and sub_centres > 1:
            raise UsageError(f"{self._name}: classes can be sampled or have sub-centres, not both.")
        centres = torch.empty(sub_centres * classes, embedding_size)
        nn.init.xavier_uniform_(centres)
        self.centres = nn.Parameter(centres if sub_centres == 1 else centres.view(sub_centres, classes, embedding_size))
        self.divided: Divided | None = None
        self._prepare_margin(class_counts)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        self._check(embedding, labels)
        with torch.autocast(embedding.device.type, enabled=False):
            x = self._exact(embedding)
            centres = self.centres.to(x.dtype)
            labels = labels.long()
            if self.training:
                self._observe(x.detach(), labels)
            angle, offset = self.margins(x.detach(), labels)
            if self.training and self.softmax.sample < 1.0:
                chosen, labels = sample_classes(labels, self.classes, self.softmax.sample)
                centres = rows_of(chosen, centres, sparse=self.softmax.sparse)
            return margin_softmax(
                x,
                centres,
                labels,
                scale=self.scale,
                angle=angle,
                offset=offset,
                hardness=self._hardness(),
                softmax=self.softmax,
                divided=self.divided,
            )

    def divide(self, peers: Peers) -> None:
        """Keep the centres of this process's part of the classes, while its peers have the others: what makes a million
        classes fit. To be called by all of them, on losses with the same centres, before an optimiser is made.

        `centres` are then those of the classes `peers.part(classes)`. All processes call the loss together, with the
        same batch and from the same random state, and all get its value and the gradient of the embedding; that of the
        centres stays where they are. Nobody has logits.

        Raises:
            UsageError: classes are sampled, or fewer than processes.
        """
        if self.softmax.sample < 1.0:
            raise UsageError(f"{self._name}: classes can be sampled or divided among processes, not both.")
        if self.classes < peers.count:
            raise UsageError(f"{self._name}: {self.classes} classes cannot be divided among {peers.count} processes.")
        self.divided = Divided(self.classes, peers)
        self.centres = nn.Parameter(self.centres.detach()[..., self.divided.here, :].clone())

    @property
    def by_image(self) -> bool:
        """Whether the loss of a batch is the mean of what each of its images would have alone, so that parts of the
        batch can be computed apart: it depends on no other image, and nothing is drawn at random."""
        return self.softmax.sample == 1.0

    @property
    def capturable(self) -> bool:
        """Whether a step with it can be a CUDA graph, in which nobody waits for the GPU, as a look at labels does."""
        return not self.check_labels

    def margins(self, embedding: Tensor, labels: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """What is added to the target's angle, and what is then subtracted from its cosine: numbers, or [B]."""
        return self.margin_of(labels), 0.0

    def margin_of(self, labels: Tensor) -> float | Tensor:
        """The margin, as it is now."""
        if isinstance(self.margin, ScheduledMargin):
            plan, steps = self.margin, self.progress // max(self.margin.every, 1)
            margin = plan.start + plan.growth * steps.float()
            return margin.clamp(min(plan.start, plan.end), max(plan.start, plan.end))
        if isinstance(self.margin, ClassMargins):
            return self.class_margins[labels]
        return self.margin

    @torch.no_grad()
    def start(self, embedding: Tensor, labels: Tensor) -> None:
        """Put each class centre, of sub-centres the first, in the mean direction of its class's embeddings [N, E] with
        labels [N], at the mean length of those that were drawn: a head that knows something already loses it to centres
        that know nothing (Kumar et al., "Fine-tuning can distort pretrained features", arXiv 2202.10054). A class
        without images keeps what was drawn. To be called before `divide`."""
        self._check(embedding, labels)
        self._check_whole()
        directions = normalize(self._exact(embedding))
        sums = directions.new_zeros(self.classes, self.embedding_size).index_add_(0, labels.long(), directions)
        centres = self.centres if self.sub_centres == 1 else self.centres[0]
        found = normalize(sums).to(centres.dtype) * centres.norm(dim=1).mean()
        centres.copy_(torch.where(sums.any(1, keepdim=True), found, centres))

    def set_epoch(self, epoch: int) -> None:
        """Tell a scheduled margin which epoch begins, from 0; others don't mind."""
        if isinstance(self.margin, ScheduledMargin) and not self.margin.every:
            self.progress.fill_(epoch)

    def logits(self, embedding: Tensor) -> Tensor:
        """scale * cosine with every class: [B, E] -> [B, C]."""
        self._check(embedding)
        self._check_whole()
        with torch.autocast(embedding.device.type, enabled=False):
            x = self._exact(embedding)
            return cosines(x, self.centres.to(x.dtype)) * self.scale

    def margin_logits(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """`logits` with the margin on the target column, what the loss takes the softmax of (the recipe's validation
        uses them too, point 7)."""
        self._check(embedding, labels)
        self._check_whole()
        with torch.autocast(embedding.device.type, enabled=False):
            x, labels = self._exact(embedding), labels.long()
            cosine = cosines(x, self.centres.to(x.dtype))
            angle, offset = self.margins(x.detach(), labels)
            column = labels[:, None]
            shifted = (angular_margin(cosine.gather(1, column)[:, 0], angle)[0] - offset)[:, None]
            if (hardness := self._hardness()) is not None:
                cosine = torch.where(cosine > shifted, cosine * (hardness + cosine), cosine)
            return cosine.scatter(1, column, shifted) * self.scale

    def extra_repr(self) -> str:
        text = f"embedding_size={self.embedding_size}, classes={self.classes}, scale={self.scale}, margin={self.margin}"
        text += f", sub_centres={self.sub_centres}" if self.sub_centres > 1 else ""
        return text + (f", softmax={self.softmax}" if self.softmax != Softmax() else "")

    def _observe(self, embedding: Tensor, labels: Tensor) -> None:
        """What a training batch changes in the loss's own state, before it is used."""
        if isinstance(self.margin, ScheduledMargin) and self.margin.every:
            self.progress += 1

    def _centres_of(self, labels: Tensor) -> Tensor:
        """The centre of each label [B, E], without its gradient; for losses without sub-centres."""
        centres = self.centres.detach()
        if self.divided is None:
            return centres[labels]
        places = self.divided.places(labels)
        return self.divided.from_owners(centres[places.clamp_min(0)], places)

    def _hardness(self) -> Tensor | None:
        return None

    def _prepare_margin(self, class_counts: Sequence[int] | Tensor | None) -> None:
        margin = self.margin
        if isinstance(margin, ScheduledMargin):
            values = [margin.start, margin.end]
            # the first training batch has passed 0 batches
            self.register_buffer("progress", torch.tensor(-1 if margin.every else 0))
        elif isinstance(margin, ClassMargins):
            values = [margin.least, margin.most]
            self.register_buffer("class_margins", margin.of(self._counts(class_counts)))
        else:
            values = [margin]
        least, below = self.margin_range
        if not all(least <= value < below for value in values):
            raise UsageError(f"{self._name}: margin is {margin}; it is {self.margin_unit}.")

    def _setting(self, name: str, hint: Any, value: Any) -> Any:
        """`value` as an experiment may write it: a dict becomes the ScheduledMargin, ClassMargins or Softmax of it."""
        converted, problems = convert(hint, value, name, lambda *_: [])
        if problems:
            raise UsageError(f"{self._name}: " + "; ".join(map(str, problems)))
        return converted

    progress: Tensor
    class_margins: Tensor

    def _counts(self, class_counts: Sequence[int] | Tensor | None) -> Tensor:
        if class_counts is None:
            raise UsageError(f"{self._name}: margins by class need class_counts, the images of each class in training.")
        counts = torch.as_tensor(class_counts, device="cpu")  # where there are numbers to look at, whatever is built on
        if counts.shape != (self.classes,) or bool((counts < 1).any()):
            raise UsageError(
                f"{self._name}: class_counts has shape {list(counts.shape)} and values from"
                f" {int(counts.min()) if counts.numel() else 0}; it is one number for each of {self.classes} classes,"
                " 1 or more."
            )
        return torch.as_tensor(class_counts)

    def _exact(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def _check(self, embedding: Tensor, labels: Tensor | None = None) -> None:
        check_shapes(self._name, embedding, self.embedding_size, labels)
        if labels is not None and (self.check_labels or labels.device.type == "cpu"):
            check_range(self._name, labels, self.classes)

    def _check_whole(self) -> None:
        if self.divided is not None:
            raise UsageError(f"{self._name}: the centres are divided among processes; logits want all of them.")


def sample_classes(labels: Tensor, classes: int, part: float) -> tuple[Tensor, Tensor]:
    """The classes of `labels` and random others, up to part * classes in all and sorted, and the labels' places among
    them (Partial FC). The draw is that of torch's generator of their device, as dropout's masks."""
    order = torch.rand(classes, device=labels.device)
    order.index_fill_(0, labels, 2.0)  # ahead of all others; a number that is put by [labels] waits for a GPU
    count = max(int(part * classes), min(len(labels), classes))  # all labels, were they different
    chosen = order.topk(count).indices.sort().values
    return chosen, torch.searchsorted(chosen, labels)
