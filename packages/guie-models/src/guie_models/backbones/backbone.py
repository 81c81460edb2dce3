"""What every backbone is."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_models.backbones.weights import state_digest


class Backbone(nn.Module):
    """A network in evaluation mode: images [B, 3, h, w], normalised -> features [B, D], or tokens [B, N, D].

    It is frozen as it is built. `unfreeze` opens its last blocks to training; the others stay in evaluation mode even
    after `train()`, and ask for no gradient. Raises UsageError for images of another shape, or none.
    """

    name: str  #: of the architecture and its weights
    features: int  #: D
    image_size: int  #: the side of the images, in pixels, that it expects
    mean: tuple[float, float, float]  #: of the images it was trained on, subtracted after / 255
    std: tuple[float, float, float]  #: divided by
    view: Mapping[str, Any]  #: dict(type=..., ...) of the view that its own data configuration describes
    licence: str  #: of the weights; "" where it isn't known
    digest: str  #: of the weights and the architecture, the same wherever the weights came from; for keys of features
    config: Mapping[str, Any]  #: dict(type=..., ...) that builds the same architecture again, without weights

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        architecture: str,
        config: Mapping[str, Any],
        features: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        licence: str,
        view: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.config = {"type": name, **{key: value for key, value in config.items() if value is not None}}
        self.features = features
        self.image_size = image_size
        self.mean = (float(mean[0]), float(mean[1]), float(mean[2]))
        self.std = (float(std[0]), float(std[1]), float(std[2]))
        self.view = view or {"type": "Squash"}
        self.licence = licence
        self.requires_grad_(False)
        self.train(False)
        self._architecture = architecture
        self.digest = state_digest(network.state_dict(), architecture)

    def forward(self, images: Tensor) -> Tensor:
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):  # type: ignore[attr-defined,no-untyped-call]
            self._check(images)
        features: Tensor = self.network(images)
        return features

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[0] < 1 or images.shape[1] != 3:
            grey = images.dim() == 4 and images.shape[1] == 1
            raise UsageError(
                f"{self.name} takes images of shape [B, 3, h, w], one at least; these are {list(images.shape)}."
                + (" Greyscale ones are expanded: images.expand(-1, 3, -1, -1)." if grey else "")
            )

    def blocks(self) -> list[list[str]]:
        """Names of the network's parameters by depth: the stem first, then block after block; the last also holds what
        follows it (norm, pooling, projection)."""
        return [[name for name, _ in self.network.named_parameters()]]

    def unfreeze(self, blocks: int) -> None:
        """Opens the last `blocks` of `blocks()` to training, and freezes the others; 0 freezes everything.

        `train()` then puts these into training mode. Raises UsageError for more blocks than there are.
        """
        every = self.blocks()
        if not 0 <= blocks <= len(every):
            raise UsageError(f"{self.name}: {blocks} of its blocks can't be trained; it has {len(every)}.")
        opened = {name for block in every[len(every) - blocks :] for name in block}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in opened)
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether activations of the blocks are computed again in the backward pass instead of being kept: the same
        gradients in less memory, for one more forward pass. Architectures without it train as before."""
        _set_grad_checkpointing(self.network, enable)

    def opened(self) -> dict[str, Tensor]:
        """The parameters that are open to training, by their names in the network, detached."""
        return {name: value.detach() for name, value in self.network.named_parameters() if value.requires_grad}

    def load_opened(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `opened` of a backbone of the same architecture gave after training; `digest` follows.

        Raises GuieError for a parameter that isn't there, or has another shape; nothing is taken then.
        """
        own = dict(self.network.named_parameters())
        for name, value in tensors.items():
            if name not in own or own[name].shape != value.shape:
                there = f"is {list(own[name].shape)}" if name in own else "isn't there"
                raise GuieError(
                    f"{self.name}: tuned weights of another architecture: {name} of shape {list(value.shape)} {there}"
                )
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)
        self.digest = state_digest(self.network.state_dict(), self._architecture)

    def train(self, mode: bool = True) -> Any:
        super().train(False)
        if mode and any(parameter.requires_grad for parameter in self.parameters()):
            self.training = True
            _train(self.network)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, features={self.features}, image_size={self.image_size}"


def _set_grad_checkpointing(module: nn.Module, enable: bool) -> None:
    """Of the outermost modules that have such a switch."""
    if callable(switch := getattr(module, "set_grad_checkpointing", None)):
        with contextlib.suppress(AssertionError):  # by which timm says that an architecture doesn't have it
            switch(enable)
        return
    for child in module.children():
        _set_grad_checkpointing(child, enable)


def _train(module: nn.Module) -> None:
    """Training mode for a module whose parameters are all open, and inside it for what has none (dropout); into a
    module that is open in part, part by part."""
    open_ = [parameter.requires_grad for parameter in module.parameters()]
    if open_ and all(open_):
        module.train()
    elif any(open_):
        for child in module.children():
            _train(child)
