"""The embedder: the model as it is deployed, from raw images to normalised embeddings."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from guie_core import UsageError
from guie_models import _quiet
from guie_models.augmentation import SwitchedAugmentation
from guie_models.views import CenterCrop, Squash, size_values


class Embedder(nn.Module):
    """View, backbone, head, and optionally switched test-time augmentation steered by a classifier.

    forward: one raw image [1, 3, H, W], 0..255, any size -> its embedding [1, E], L2-normalised. Without augmentation
    the image goes through `view`; with it, the views are those of `SwitchedAugmentation` and their head outputs are
    averaged before they are normalised (5th place, point 10). `classifier` reads the features [B, D] of the whole image
    and its argmax is the category. The image may be uint8 or float, on any device; the work is done where the model is.

    `embed` does the same for many images of different sizes; `embed_preprocessed` starts after the view.
    `head` and `classifier` are modules with the attributes of `guie_models.heads`.

    Raises UsageError for parts that don't fit each other, and for an image of another shape.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        view: Squash | CenterCrop,
        augmentation: SwitchedAugmentation | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        features = getattr(backbone, "features", None)
        for name, part in (("head", head), ("classifier", classifier)):
            takes = getattr(part, "in_features", features)
            if part is not None and features is not None and takes != features:
                raise UsageError(f"The backbone gives {features} features; the {name} takes {takes}.")
        if classifier is not None and getattr(classifier, "size_features", 0) > 0:
            raise UsageError("The classifier takes size values; the embedder gives it the features alone.")
        if augmentation is not None and len(augmentation.padded_for) and classifier is None:
            raise UsageError("The augmentation pads for some categories; without a classifier no category is known.")
        outputs = getattr(classifier, "out_features", None)
        if augmentation is not None and len(augmentation.padded_for) and outputs is not None:
            highest = int(augmentation.padded_for.max())
            if highest >= outputs:
                raise UsageError(
                    f"The augmentation pads for category {highest}; the classifier tells {outputs} apart, from 0."
                )
        if augmentation is not None and augmentation.size != view.size:
            raise UsageError(f"The view's side is {view.size} px, the augmentation's {augmentation.size} px.")
        self.backbone = backbone
        self.head = head
        self.view = view
        self.augmentation = augmentation
        self.classifier = classifier
        self.size = view.size
        self.with_sizes = bool(getattr(head, "size_features", 0))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            _check_image(image, batch=True)
        image = image[0].to(self.view.mean.device)
        height = image.shape[1]
        width = image.shape[2]
        values = [height / width, height / self.size, width / self.size]
        sizes = torch.tensor([values], dtype=torch.float32, device=image.device)
        if self.augmentation is None:
            return F.normalize(self._head(self._features(self.view(image).unsqueeze(0)), sizes))
        if height == width:
            return F.normalize(self._head(self._features(self.augmentation.square(image).unsqueeze(0)), sizes))
        views = torch.stack([self.augmentation.whole(image), self.augmentation.padded_crop(image)])
        features = self._features(views)
        outputs = self._head(features, sizes.expand(2, 3))
        if self.classifier is not None:
            category = int(self.classifier(features[:1]).argmax(dim=1)[0])
            if self.augmentation.pads(category):
                padded = self._features(self.augmentation.padded(image).unsqueeze(0))
                outputs = torch.cat([outputs, self._head(padded, sizes)])
        return F.normalize(outputs.mean(dim=0, keepdim=True))

    def embed_preprocessed(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Images [B, 3, h, w] that went through `view`, and their `size_values` [B, 3] -> embeddings [B, E]."""
        return F.normalize(self._head(self._features(images), sizes))

    @torch.no_grad()
    def embed(self, images: Sequence[Tensor], batch_size: int | None = None) -> Tensor:
        """Embeddings [N, E] of raw images, each [3, H, W] or [1, 3, H, W] of its own size; as `forward`, in batches.

        A view is made only for the images that need it, and its features are computed once. At most `batch_size` views
        are held at a time; None: 64, and 8 on a CPU, where larger activations are not reused but taken from the system,
        page by page, for each layer: a convolutional network then takes twice the time or more. Raises UsageError for
        images that aren't tensors of such a shape.
        """
        if batch_size is None:
            batch_size = 8 if self.view.mean.device.type == "cpu" else 64
        if batch_size < 1:
            raise UsageError(f"embed: batch_size is {batch_size}; it is a number of images, 1 or more.")
        raw = [raw_image(image) for image in images]
        device = self.view.mean.device
        heights = torch.tensor([image.shape[1] for image in raw], dtype=torch.int64)
        widths = torch.tensor([image.shape[2] for image in raw], dtype=torch.int64)
        if not raw:
            return torch.zeros(0, int(cast(int, self.head.out_features)), device=device)
        sizes = size_values(heights, widths, self.size).to(device)
        everything = torch.ones(len(raw), dtype=torch.bool)
        if self.augmentation is None:
            return F.normalize(self._head(self._features_of(self.view, raw, everything, batch_size), sizes))
        masks = self.augmentation.masks(heights, widths)
        features = {}
        for name in ("square", "whole", "padded_crop"):
            features[name] = self._features_of(getattr(self.augmentation, name), raw, masks[name], batch_size)
        if self.classifier is not None and bool(masks["whole"].any()):
            categories = torch.full((len(raw),), -1)
            categories[masks["whole"]] = self.classifier(features["whole"]).argmax(dim=1).cpu()
            masks = self.augmentation.masks(heights, widths, categories)
        features["padded"] = self._features_of(self.augmentation.padded, raw, masks["padded"], batch_size)
        outputs = {
            name: self._head(features[name], sizes[mask.to(device)]) for name, mask in masks.items() if bool(mask.any())
        }
        return F.normalize(self.augmentation.combine(outputs, masks))

    def reduced(self, dtype: torch.dtype) -> Embedder:
        """The embedder with its backbone in `dtype` (torch.bfloat16, torch.float16), cast once; views, head and
        classifier stay in float32, and so do the embeddings. A copy of the backbone; the other parts are shared.

        bfloat16 is about twice as fast on CPUs that have it (AVX-512 BF16, AMX) and on GPUs from Ampere on. Raises
        UsageError for a dtype that isn't floating. Of one that is reduced already the rounded weights are cast.
        """
        if not dtype.is_floating_point:
            raise UsageError(f"A backbone can't compute in {dtype}; name torch.bfloat16 or torch.float16.")
        backbone = self.backbone.backbone if isinstance(self.backbone, ReducedPrecision) else self.backbone
        return self._with(backbone=ReducedPrecision(copy.deepcopy(backbone), dtype))

    def folded(self) -> Embedder:
        """The embedder with its head folded where that has a simpler form for evaluation (`folded()` of a head), for
        export; shares its tensors with this one."""
        fold = getattr(self.head, "folded", None)
        return self if fold is None else self._with(head=fold().eval())

    def script(self) -> torch.jit.ScriptModule:
        """The embedder as TorchScript, which runs without guie: the backbone traced, everything else scripted.

        The head is folded. Shares its tensors with this one. Raises UsageError if a part is in training mode.
        """
        check_evaluation(self)
        example = self.view(torch.zeros(3, 8, 8, device=self.view.mean.device)).expand(2, -1, -1, -1)
        with _quiet.torchscript(), warnings.catch_warnings(), torch.no_grad():
            # of shapes that a network looks at: but for the batch they are fixed
            warnings.filterwarnings("ignore", category=TracerWarning)
            traced: Any = torch.jit.trace(self.backbone, example, check_trace=False)
            return cast(torch.jit.ScriptModule, torch.jit.script(self.folded()._with(backbone=traced)))

    def _with(self, **parts: nn.Module) -> Embedder:
        """This embedder with some of its parts replaced; it shares the others."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, **parts}
        return twin

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features.to(torch.float32)

    def _head(self, features: Tensor, sizes: Tensor) -> Tensor:
        if self.with_sizes:
            features = torch.cat([features, sizes], dim=1)
        output: Tensor = self.head(features)
        return output

    def _features_of(self, view: Any, images: Sequence[Tensor], mask: Tensor, batch_size: int) -> Tensor:
        """Features [n, D] of one view of the images that `mask` [N] names."""
        rows = mask.nonzero()[:, 0].tolist()
        device = self.view.mean.device
        batches = [
            self._features(torch.stack([view(images[row].to(device)) for row in rows[start : start + batch_size]]))
            for start in range(0, len(rows), batch_size)
        ]
        return torch.cat(batches) if batches else torch.zeros(0, 0, device=device)


class ReducedPrecision(nn.Module):
    """A backbone that computes in another dtype: float32 images [B, 3, h, w] -> float32 features [B, D]."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = backbone.to(dtype)
        self.dtype = dtype
        self.features = getattr(backbone, "features", None)
        self.training = backbone.training

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images.to(self.dtype))
        return features.to(torch.float32)


def check_evaluation(embedder: Embedder) -> None:
    """Raises UsageError if a part of `embedder` is in training mode, whose noise and statistics no export has."""
    training = [name or "itself" for name, module in embedder.named_modules() if module.training]
    if training:
        raise UsageError(f"The embedder is in training mode ({training[0]}); call .eval() before exporting it.")


def raw_image(image: Tensor) -> Tensor:
    """`image`, [3, H, W] or [1, 3, H, W], as [3, H, W]. Raises UsageError for anything else."""
    return _check_image(image, batch=isinstance(image, Tensor) and image.dim() == 4).reshape(image.shape[-3:])


def _check_image(image: Tensor, batch: bool) -> Tensor:
    if not isinstance(image, Tensor):
        raise UsageError(
            f"The embedder takes tensors; this image is a {type(image).__name__}. An array [height, width, 3] becomes"
            " one by torch.from_numpy(image).permute(2, 0, 1)."
        )
    shape = list(image.shape)
    if len(shape) != (4 if batch else 3) or shape[-3] != 3 or 0 in shape or (batch and shape[0] != 1):
        wanted = "[1, 3, height, width]" if batch else "[3, height, width]"
        raise UsageError(f"The embedder takes one RGB image of shape {wanted}, 0..255; this one is {shape}.")
    return image
