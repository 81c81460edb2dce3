"""What a training has on the disk: the state from which it goes on, and checkpoints."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import nn

from guie_core import GuieError
from guie_core.files import atomic_write, remove_directory
from guie_core.wording import plural
from guie_datasets import Manifest
from guie_train.device import out_of_memory

if TYPE_CHECKING:
    from guie_train.fitting.fit import Fit

log = logging.getLogger(__name__)


def keep_if_of(images: Manifest, folder: Path, name: str) -> None:
    """Empty the folder of a training, with a warning, unless what it has was begun with the same images.

    Those that can be decoded are others once one of them was mended. The numbers of their rows, in which the order of
    an epoch is told, are then others as well.
    """
    path = folder / "images.json"
    now = json.dumps({"images": len(images), "digest": images.digest}).encode()
    if (folder / "state.pt").exists() and path.exists():
        if path.read_bytes() == now:
            return
        log.warning(
            "%s: the images that can be decoded are no longer those of the training that was interrupted; it begins "
            "anew, with %s",
            *(name, plural(len(images), "image")),
        )
        remove_directory(folder)
        folder.mkdir()
    with atomic_write(path) as file:
        file.write(now)


def state_of(fit: Fit) -> dict[str, Any]:
    """All that the next step of this process depends on."""
    state: dict[str, Any] = {
        "model": fit.model.state_dict(),
        "optimizer": fit.optimizer.state_dict(),
        "epoch": fit.epoch,
        "step": fit.step,
        "total": fit.losses.total,
        "scale": fit.train_step.scale.state_dict(),
        "skipped": int(fit.train_step.left_out),
        "curves": fit.curves,
        "rng": torch.get_rng_state(),
    }
    if fit.average is not None:
        state["average"] = fit.average.module.state_dict()
    if fit.examples.device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(fit.examples.device)
    return state


def load_state(fit: Fit, path: Path) -> None:
    """Go on from a whole state.

    Raises:
        GuieError: the file is damaged, or of another training.
    """
    try:
        # mapped where it is copied, as a whole or in part; each loader knows where its tensors belong
        copied = fit.shards is not None or fit.examples.device.type != "cpu"
        state = torch.load(path, map_location="cpu", mmap=copied, weights_only=True)
        if fit.shards is not None:
            state = fit.shards.sharded(state, fit.optimizer)
        fit.model.load_state_dict(state["model"])
        fit.optimizer.load_state_dict(state["optimizer"])
        if fit.average is not None:
            fit.average.module.load_state_dict(state["average"])
        fit.train_step.scale.load_state_dict(state["scale"])
        fit.train_step.left_out.fill_(state["skipped"])
        fit.epoch, fit.step = state["epoch"], state["step"]
        fit.losses.total, fit.curves = state["total"].to(fit.examples.device), state["curves"]
        torch.set_rng_state(state["rng"])
        if fit.examples.device.type == "cuda" and "cuda_rng" in state:  # not if it was begun on the CPU
            torch.cuda.set_rng_state(state["cuda_rng"], fit.examples.device)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        if out_of_memory(error):
            raise
        raise GuieError(f"{path} cannot be read ({error}); delete it to train from the start") from error


def save_tensors(module: nn.Module, path: Path) -> None:
    """Write the tensors of `module` as safetensors."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(tensors))


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what `torch.load` reads, piece by piece: no copy of it is made in memory.

    Raises:
        GuieError: the disk, as for `guie_core.files.atomic_write`; what was at `path` is kept.
    """
    with atomic_write(path) as file:
        pieces = _Remembering(file)
        try:
            torch.save(state, cast(IO[bytes], pieces))  # of which it calls these two alone
        except Exception as error:
            if pieces.error is None:
                raise
            raise pieces.error from error


class _Remembering:
    """A file that knows why it could not be written; torch's writer says only that it couldn't, in one of many ways."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """For torch, which asks for it; the file is flushed when it is whole."""
