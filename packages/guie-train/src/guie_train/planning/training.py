"""What a training on resident features takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guie_models.optimizers import build_optimizer
from guie_train.feature_store import SHARD
from guie_train.fitting import Training
from guie_train.fitting.graph import capturable
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook
from guie_train.planning.meta import on_meta, parameters, state_bytes, step, trace
from guie_train.processes import Processes

CURVE = 300
"""Bytes of an epoch's figures, in curves.json and in state.pt."""
READING = 2 * SHARD
"""Rows of features, in float32, that are held while others are read: a shard as it is mapped and what was chosen of it,
in 16 bits, and some thousand rows with their size values."""


class Unsent(Processes):
    """Processes that send nothing: on the meta device there are no numbers."""

    def all_reduce(self, *tensors: Tensor) -> None:
        """Leaves them as they are."""


def forecast_training(
    outlook: Outlook, model: nn.Module, training: Training, *, images: int, others: int, width: int, files: int
) -> Forecast:
    """What `guie_train.fitting.Fit` takes to train `model`, which is on the meta device.

    Args:
        images: that are trained on; `others` are looked at between epochs.
        width: numbers of an image, float32; all images stay on the device.
        files: checkpoints, besides those that `training` keeps every so many epochs.
    """
    optimizer = on_meta(lambda: build_optimizer(training.optimizer, model.parameters()))
    inputs = torch.empty(training.batch_size, width, device="meta")
    labels = torch.empty(training.batch_size, dtype=torch.long, device="meta")
    traced = trace(lambda: step(model, optimizer, inputs, labels, training.max_norm), model, inputs, labels)
    steps = images // training.batch_size // training.epoch_parts
    checkpoint, (total, trained) = state_bytes(model), parameters(model)
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    on_gpu = outlook.profile.device == "cuda"
    graph = on_gpu and outlook.profile.cuda_graphs and outlook.processes == 1 and capturable(model, optimizer)
    seconds, at_least, basis = outlook.time(traced, training.epochs * steps, "float32", cuda_graph=graph)
    average = checkpoint if training.ema_decay else 0
    kept = training.epochs // training.keep_every if training.keep_every else 0
    resident = (images + others) * width * 4 + images * 8
    # a graph has memory of its own, and is compared with a step: the states before and after, by either
    compared = traced.peak + 3 * (checkpoint + moments) if graph else 0
    working, reading = traced.peak + average, READING * width * 4
    return Forecast(
        does=f"{training.epochs:,} epochs of {steps:,} steps of {training.batch_size}",
        parameters=total,
        trained=trained,
        disk=(kept + files + 1) * checkpoint + average + moments + 2 * CURVE * training.epochs,  # 1: state.pt
        device=resident + working + compared,
        # on a GPU they are read, and then moved; elsewhere training begins when what reading took is free again
        host=LIBRARIES + (resident + reading if on_gpu else max(0, reading - working)),
        seconds=seconds,
        at_least=at_least,
        basis=basis,
    )
