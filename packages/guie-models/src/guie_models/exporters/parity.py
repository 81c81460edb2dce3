"""The proof that an exported file does what the embedder does, before the file gets its name."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from guie_core import GuieError, UsageError
from guie_core.files import explain_os_errors, sync_directory, temporary_directory
from guie_models.embedder import Embedder, check_evaluation, raw_image

NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how near it is to the embedder, on the images that it was verified with."""

    path: Path
    bytes: int  #: of the file, and of a file of weights beside it
    images: int  #: how many were compared
    max_difference: float  #: the largest absolute difference of any value of any embedding
    min_cosine: float  #: the smallest cosine between an image's two embeddings
    top5_agreement: (
        float  #: part of the neighbours found with the file that are right by the embedder (`top5_agreement`)
    )
    images_per_second: float  #: of the file, on this machine's CPU
    note: str = ""  #: what of the embedder the file, and so the comparison, is without
    prepared: bool = False  #: whether the file takes images that the view has made, which the rate leaves out

    @property
    def speed(self) -> str:
        """The rate for people, "61 images/s"."""
        rate = self.images_per_second
        return f"{rate:,.{0 if rate >= 10 else 2}f} {'prepared ' * self.prepared}images/s"

    def __str__(self) -> str:
        return (
            f"{self.path.name}: {self.bytes / 1e6:.1f} MB, {self.speed}; on"
            f" {self.images} images the largest difference is {self.max_difference:.1e}, the smallest cosine"
            f" {self.min_cosine:.7f}, the top-5 agree to {self.top5_agreement:.2%}"
            + (f"; {self.note}" if self.note else "")
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What an exported file may differ by: in any value, in the cosine of any image, and in the part of the top-5 that
    agrees, where neighbours whose distances differ by less than max_difference count as equal."""

    max_difference: float
    min_cosine: float
    min_agreement: float = 1.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_difference", 0.0, float("inf")),
            ("min_cosine", -1.0, 1.0),
            ("min_agreement", 0.0, 1.0),
        ):
            if not least <= (value := getattr(self, name)) <= most:  # also for nan, which nothing would be within
                to = f"from {least:g} to {most:g}" if most < float("inf") else f"{least:g} or more"
                raise UsageError(f"{name} is {value:g}; it is {to}.")


def verify(
    path: Path,
    final: Path,
    run: Callable[[], Tensor],
    expected: Tensor,
    limits: Limits,
    what: str,
    note: str = "",
    prepared: bool = False,
) -> ExportReport:
    """Compares `run()`, embeddings [N, E] by the file at `path`, with `expected`. Raises GuieError beyond `limits`."""
    found = run()
    start = perf_counter()
    run()  # the first pass compiles for each shape that it meets
    seconds = perf_counter() - start
    if found.shape != expected.shape:
        raise GuieError(
            f"{what}: the exported file gives embeddings of shape {list(found.shape)}, the embedder"
            f" {list(expected.shape)}. No file was written."
        )
    report = ExportReport(
        path=final,
        bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
        images=len(expected),
        max_difference=float((found.double() - expected.double()).abs().max()),
        min_cosine=float(F.cosine_similarity(found.double(), expected.double()).min()),
        top5_agreement=top5_agreement(expected, found, tie=limits.max_difference),
        images_per_second=len(expected) / seconds,
        note=note,
        prepared=prepared,
    )
    near = report.max_difference <= limits.max_difference and report.min_cosine >= limits.min_cosine
    if not (near and report.top5_agreement >= limits.min_agreement):  # written so that NaN fails
        part = "all" if limits.min_agreement == 1.0 else f"{limits.min_agreement:.0%}"
        raise GuieError(
            f"{what}: the exported file differs from the embedder.\n  {report}\n  Allowed: {limits.max_difference:g},"
            f" {limits.min_cosine:g}, {part} of the top-5. No file was written."
        )
    return report


def top5_agreement(expected: Tensor, found: Tensor, tie: float) -> float:
    """Part of the five nearest neighbours by `found` [N, E] that are also among the five nearest by `expected`.

    Every image is a query against all others, by L2 distance. A neighbour also counts if by `expected` it is no more
    than `tie` farther than the fifth: which of several equally far images comes fifth means nothing. With fewer than
    six images all others are asked for; with one the agreement is 1.
    """
    expected, found = expected.double(), found.double()
    count = min(NEIGHBOURS, len(expected) - 1)
    if count < 1:
        return 1.0
    right = 0
    for start in range(0, len(expected), 256):
        rows = torch.arange(start, min(start + 256, len(expected)))
        itself = (torch.arange(len(rows)), rows)
        true = torch.cdist(expected[rows], expected).index_put(itself, torch.tensor(torch.inf, dtype=torch.float64))
        by_file = torch.cdist(found[rows], found).index_put(itself, torch.tensor(torch.inf, dtype=torch.float64))
        chosen = by_file.argsort(dim=1, stable=True)[:, :count]
        fifth = true.kthvalue(count, dim=1, keepdim=True).values
        right += int((true.gather(1, chosen) <= fifth + tie).sum())
    return right / (count * len(expected))


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A folder inside `directory` to write to; its files move to `directory` when the block ends without error."""
    with explain_os_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        folder = temporary_directory(directory / "export")
        try:
            yield folder
            # the weights beside a graph first, so that a graph is never without them
            for file in sorted(folder.iterdir(), reverse=True):
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
                file.replace(directory / file.name)
            sync_directory(directory)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def ready(embedder: Embedder, images: Sequence[Tensor], what: str) -> tuple[Embedder, list[Tensor]]:
    """What an export starts from: the embedder, or a copy of it, and `images` as [3, H, W], both on the CPU.

    Raises UsageError for an embedder in training mode, and for no images or others than an embedder takes.
    """
    if len(images) == 0:
        raise UsageError(f"{what}: an export is verified on real images; none were given.")
    check_evaluation(embedder)
    raw = [raw_image(image).cpu() for image in images]
    return embedder if embedder.view.mean.device.type == "cpu" else copy.deepcopy(embedder).cpu(), raw
