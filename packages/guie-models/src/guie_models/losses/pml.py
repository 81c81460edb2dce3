"""Losses and miners of pytorch-metric-learning, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing
from guie_models.losses.margin_softmax import check_range, check_shapes

WITHOUT_LABELS = ("SelfSupervisedLoss", "VICRegLoss")
PARTS = ("losses", "miners", "distances", "reducers", "regularizers")


class PmlLoss(nn.Module):
    """Any loss of pytorch-metric-learning, such as `pml/MultiSimilarityLoss`, with a miner if wanted.

    Arguments are those of the loss itself; those that are components of the library in turn are written
    dict(type=name, ...): `distance`, `reducer`, `embedding_regularizer`, the `loss` that a wrapper wraps, ... Losses
    that own class weights get `num_classes` and `embedding_size`; what they own is trained and saved as `loss.*`. What
    the library keeps outside the state dictionary (the queue of CrossBatchMemory) is empty again after resuming. Value
    and gradient are the library's; but for an embedding that isn't finite the value is NaN, as it isn't in all of its
    losses.

    forward: embedding [B, E], labels [B] -> scalar, in float32 whatever autocast says. `logits` [B, C] for the losses
    that have them. There are no `margin_logits`.

    Args:
        name: of the loss.
        embedding_size: E.
        classes: C.
        miner: dict(type=name, ...), chooses the pairs or triplets of each batch that the loss sees.
        class_counts: not used, since no loss of the library asks for it; training loops give it to every loss.

    Raises:
        UsageError: no such loss, miner or argument; wrong shapes or an empty batch.
        GuieError: labels out of range of class weights (on the CPU); a batch that the library refuses; the library
            isn't installed.
    """

    def __init__(
        self,
        name: str,
        embedding_size: int,
        classes: int,
        miner: Mapping[str, Any] | None = None,
        class_counts: object = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._name = f"pml/{name}"
        self.embedding_size = embedding_size
        self.classes = classes
        self._sizes = {"num_classes": classes, "embedding_size": embedding_size, "descriptors_dim": embedding_size}
        self.loss: Any = self._made({"type": name, **arguments}, ("losses",))
        self.miner: Any = None if miner is None else self._made(miner, ("miners",))
        if name in WITHOUT_LABELS:
            raise UsageError(f"{self._name} compares two views of an image and takes no labels.")
        self.owns_classes = any(parameter.numel() % classes == 0 for parameter in self.loss.parameters())

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        check_shapes(self._name, embedding, self.embedding_size, labels)
        if self.owns_classes and labels.device.type == "cpu":
            check_range(self._name, labels, self.classes)
        with torch.autocast(embedding.device.type, enabled=False):
            x = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
            try:
                mined = () if self.miner is None else (self.miner(x, labels),)
                loss: Tensor = self.loss(x, labels, *mined)
            except ValueError as error:
                raise GuieError(f"{self._name} refused a batch: {error}") from error
            # hinges and reducers of the library drop NaN, and training would go on
            return loss + (x * 0.0).sum()

    def logits(self, embedding: Tensor) -> Tensor:
        """The loss's own logits: [B, E] -> [B, C]. Raises UsageError for losses that have none."""
        check_shapes(self._name, embedding, self.embedding_size)
        if not hasattr(self.loss, "get_logits"):
            raise UsageError(f"{self._name} compares embeddings with each other and has no logits.")
        with torch.autocast(embedding.device.type, enabled=False):
            logits: Tensor = self.loss.get_logits(embedding.float())
        return logits

    def _made(self, config: Any, parts: tuple[str, ...] = PARTS) -> Any:
        """`config` with every dict(type=...) in it built, from the innermost out."""
        if isinstance(config, list | tuple):
            return [self._made(item) for item in config]
        if not isinstance(config, Mapping):
            return config
        if "type" not in config:
            return {key: self._made(value) for key, value in config.items()}
        found = _components(parts)
        name = config["type"]
        if name not in found:
            raise UsageError(
                f"{self._name}: pytorch-metric-learning has no {name!r} among its {' and '.join(parts)}."
                f"{did_you_mean(str(name), found)}\nThey are: {listing(sorted(found), 60)}."
            )
        target = found[str(name)]
        takes = {n for base in target.__mro__ if "__init__" in vars(base) for n in _arguments(base)}
        arguments = {key: value for key, value in self._sizes.items() if key in takes}
        arguments |= {key: self._made(value) for key, value in config.items() if key != "type"}
        wrong = [key for key in arguments if key not in takes]
        if wrong:
            raise UsageError(
                f"{self._name}: {name} of pytorch-metric-learning has no argument {wrong[0]!r}."
                f"{did_you_mean(wrong[0], takes)}\nIt takes: {listing(sorted(takes), 40)}."
            )
        try:
            return target(**arguments)
        except (TypeError, ValueError, AssertionError) as error:
            raise UsageError(f"{self._name}: {name} refused its arguments: {error}") from error


def _components(parts: tuple[str, ...]) -> dict[str, type]:
    try:
        import pytorch_metric_learning as library
        from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: F401
    except ImportError as error:
        raise GuieError("pytorch-metric-learning isn't installed: pip install 'guie-models[pml]' brings it.") from error
    modules = [getattr(library, part) for part in parts]
    return {name: value for module in modules for name, value in vars(module).items() if inspect.isclass(value)}


def _arguments(cls: type) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != "self"]
