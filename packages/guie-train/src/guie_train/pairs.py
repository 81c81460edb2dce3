"""Features as the 5th place's code keeps them: `emb_<n>.npy` beside `label_<n>.npy`.

`emb_<n>.npy` is float32 [n, D], or [n, D + 3] with the three size values that its head takes; `label_<n>.npy` is int64
[n], labels 0..C-1. A file has some 250,000 rows, in the order of the table of images, and nothing says which row is
which image: a manifest does, in the same order. Its classifier's files have a suffix more: `emb_<n>_0.npy`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guie_core import GuieError
from guie_core.files import atomic_write
from guie_core.wording import listing, plural, shown
from guie_datasets import ImageRef, Manifest
from guie_models.backbones import Backbone
from guie_train.device import device_of
from guie_train.extraction import Extractor, features_of
from guie_train.feature_store import finite
from guie_train.heads import sizes_of
from guie_train.stage import Workspace
from guie_train.stages.features import Features

ROWS = 250_000  # in a file
BLOCK = 8192  # rows that are held at once
_NAME = re.compile(r"emb_(\d+)(_\w+)?\.npy")


def export_pairs(
    stage: Features, workspace: Workspace, folder: Path, *, split: str | None = None, sizes: bool = False, view: int = 0
) -> int:
    """Write the features of a stage that is done, or of those of its images that are in `split`; returns how many.

    Labels are encoded 0..C-1 over what is written, as the original encodes those of its training images. The files are
    there once all features have been read and are on the disk: damage in the last of them leaves none.

    Raises:
        GuieError: there are files of that kind already, features are missing, no image, or no such view.
    """
    store = workspace.get(stage)
    manifest, rows = _chosen(stage, workspace, split)
    kept = rows[~store.is_bad(manifest.column("hash")[rows])]
    if _pairs(folder):
        raise GuieError(f"{shown(folder)} holds features already; choose another folder")
    if not 0 <= view < store.views:
        raise GuieError(f"{stage.name} has {plural(store.views, 'view')}, numbered from 0; there is no view {view}")
    labels = np.unique(manifest.column("label")[kept], return_inverse=True)[1].astype(np.int64)
    values = sizes_of(manifest, kept, store.about["image_size"]).numpy()
    hashes = manifest.column("hash")[kept]
    with ExitStack() as files:  # they get their names when all have been written
        for number, start in enumerate(range(0, len(kept), ROWS)):
            part = slice(start, start + ROWS)
            features = store.read(hashes[part], view)
            if sizes:
                features = np.hstack([features, values[part]])
            for name, array in (("emb", features), ("label", labels[part])):
                _save(files.enter_context(atomic_write(folder / f"{name}_{number}.npy")), array)
    return len(kept)


@dataclass(frozen=True)
class Imported:
    """How many images the files have features of, how many of them are new in the store, and of those that were
    computed here as well the least cosine to what the files say (None: none was)."""

    images: int
    new: int
    cosine: float | None


def import_pairs(
    stage: Features,
    workspace: Workspace,
    folder: Path,
    *,
    split: str | None = None,
    check: int = 8,
    min_cosine: float | None = None,
) -> Imported:
    """Add features from files to the store of a stage, for all its images or for those in `split`.

    That the rows are those of the manifest's images, in its order, is not taken on trust: their number, which rows
    share a label, and the size values where the files have them must agree; and `check` images are computed here, to be
    like what the files say: `min_cosine`, or 0.99, or 0.9 of a view that draws at random, since it has drawn another.
    Their lengths, of which a cosine knows nothing, may differ by a tenth, or by three tenths of such a view.

    Raises:
        GuieError: anything of this doesn't hold; nothing has been added then.
    """
    manifest, rows = _chosen(stage, workspace, split)
    files, blocks, labels = _read_pairs(folder)
    if len(labels) != len(rows):
        of = "" if split is None else f" in split {split!r}"
        raise GuieError(
            f"{shown(folder)} has features of {plural(len(labels), 'image')}, and {stage.name} has {len(rows):,}{of}; "
            "they are matched by their order, so both must be the same"
        )
    _same_labels(labels, manifest.column("label")[rows], folder)
    backbone = stage.network(workspace)
    width = blocks[0].shape[1]
    if width not in (backbone.features, backbone.features + 3):
        raise GuieError(
            f"{shown(folder)} has {width:,} values a row, and {backbone.name} gives {backbone.features:,} features "
            "(or three more, with size values)"
        )
    if width == backbone.features + 3:
        _same_sizes(blocks, manifest, rows, backbone, folder)
    _all_finite(files, [block[:, : backbone.features] for block in blocks], stage.dtype, manifest.images(), rows)
    cosine = None
    if check:
        random = bool(getattr(stage.seen_by(backbone), "random", False))
        least = min_cosine if min_cosine is not None else 0.9 if random else 0.99
        here, there = _sample(stage, workspace, backbone, manifest, rows, blocks, check)
        cosine = float(_cosines(here, there).min())
        if cosine < least:
            raise GuieError(
                f"{shown(folder)}: an image that was computed here has features whose cosine to those of the files is "
                f"{cosine:.3f}, less than {least:g}: another backbone, another view, or images in another order. "
                "--min-cosine sets the limit"
            )
        _same_lengths(here.norm(dim=1), there.norm(dim=1), 0.3 if random else 0.1, folder)
    store = stage.open(workspace.folder(stage), backbone)
    if store.views > 1:
        raise GuieError(f"{stage.name} has {store.views} views of an image, and the files have one")
    before = len(store)
    position = 0
    for block in blocks:
        for start in range(0, len(block), BLOCK):
            features = block[start : start + BLOCK, : backbone.features]
            hashes = manifest.column("hash")[rows[position : position + len(features)]]
            position += len(features)
            new = store.missing(hashes)
            if len(new):
                store.append(hashes[new], features[new])
    return Imported(len(rows), len(store) - before, cosine)


def _chosen(stage: Features, workspace: Workspace, split: str | None) -> tuple[Manifest, NDArray[np.int64]]:
    manifest = workspace.get(stage.manifest)
    rows = stage.rows(manifest)
    splits = manifest.column("split")[rows]
    chosen = rows if split is None else rows[splits == split]
    if not len(chosen):
        there = listing(np.unique(splits).tolist())
        raise GuieError(f"{stage.name} has no image" + (f" in split {split!r}; it has {there}" if split else ""))
    return manifest, chosen


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """The pairs of a folder, in the order in which they were written."""
    found = [(match, path) for path in folder.glob("emb_*.npy") if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda each: (each[0][2] or "", int(each[0][1])))
    return [(path, path.with_name(path.name.replace("emb_", "label_", 1))) for _, path in found]


def _read_pairs(folder: Path) -> tuple[list[Path], list[NDArray[np.float32]], NDArray[np.int64]]:
    """The files of features, what each has [n, W], memory-mapped, and all labels [N]."""
    pairs = _pairs(folder)
    if not pairs:
        raise GuieError(f"{shown(folder)} holds no emb_<n>.npy")
    blocks: list[NDArray[np.float32]] = []
    labels = []
    for path, beside in pairs:
        features, label = _load(path), _load(beside)
        if (
            features.ndim != 2
            or features.dtype.kind != "f"
            or features.shape[1:] != (blocks or [features])[0].shape[1:]
        ):
            raise GuieError(
                f"{shown(path)} has {features.dtype} {list(features.shape)}, and should have features [n, D]"
            )
        if label.shape != (len(features),) or label.dtype.kind not in "iu":
            raise GuieError(
                f"{shown(beside)} has {label.dtype} {list(label.shape)}, and {path.name} {plural(len(features), 'row')}"
            )
        blocks.append(features)
        labels.append(label.astype(np.int64))
    return [path for path, _ in pairs], blocks, np.concatenate(labels)


def _load(path: Path) -> NDArray[np.float32]:
    try:
        array: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise GuieError(f"{shown(path)} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise GuieError(f"{shown(path)} is damaged: {error}") from error
    return array


def _same_labels(files: NDArray[np.int64], manifest: NDArray[np.int64], folder: Path) -> None:
    """Raises GuieError unless the same rows share a label in both."""
    pairs = np.unique(np.stack([files, manifest]), axis=1)
    for mine, theirs in ((files, 0), (manifest, 1)):
        values, counts = np.unique(pairs[theirs], return_counts=True)
        if (counts > 1).any():
            row = int(np.flatnonzero(mine == values[counts.argmax()])[0])
            raise GuieError(
                f"{shown(folder)}: its labels don't group the images as the manifest's do (row {row} is of such a "
                "class); the images are others, or in another order"
            )


def _same_sizes(
    blocks: list[NDArray[np.float32]], manifest: Manifest, rows: NDArray[np.int64], backbone: Backbone, folder: Path
) -> None:
    found = np.concatenate([block[:, -3:] for block in blocks])
    wrong = ~np.isclose(found, sizes_of(manifest, rows, backbone.image_size).numpy(), rtol=1e-3).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise GuieError(
            f"{shown(folder)}: row {row} has the size values {found[row].tolist()}, and {manifest.images()[rows[row]]} "
            f"is {manifest.column('width')[rows[row]]} x {manifest.column('height')[rows[row]]} "
            f"({wrong.sum():,} rows differ); the images are others, or in another order"
        )


def _all_finite(
    files: list[Path],
    blocks: list[NDArray[np.float32]],
    dtype: str,
    images: Sequence[ImageRef],
    rows: NDArray[np.int64],
) -> None:
    """Raises GuieError unless a store of this dtype can keep all features [n, D]."""
    first, count, position = None, 0, 0
    for path, block in zip(files, blocks, strict=True):
        for start in range(0, len(block), BLOCK):
            part = block[start : start + BLOCK]
            wrong = np.flatnonzero(~finite(part, dtype))
            if len(wrong) and first is None:
                values = part[wrong[0]].astype(np.float64)
                largest = float(values[np.abs(values).argmax()])  # nan if one is
                first = path, start + int(wrong[0]), images[int(rows[position + wrong[0]])], largest
            count += len(wrong)
            position += len(part)
    if first is None:
        return
    path, row, image, largest = first
    if np.isfinite(largest):
        what = f"the value {largest:,.0f}, and {dtype} ends at {np.copysign(float(np.finfo(dtype).max), largest):,.0f}"
        remedy = "Add --set recipe.features.dtype=float32"
    else:
        what = f"features that are not finite ({'NaN' if np.isnan(largest) else 'infinite'})"
        remedy = "Have them made again where they come from, or computed here by guie features build"
    others = f", as {plural(count - 1, 'other row')} in {shown(path.parent)}" * (count > 1)
    raise GuieError(f"{shown(path)}: row {row}, of {image}, has {what}{others}. Nothing was added. {remedy}")


def _cosines(here: Tensor, there: Tensor) -> Tensor:
    """Of features [n, D] and [n, D]; 1 where both are zero."""
    cosines = torch.nn.functional.cosine_similarity(here, there)
    return torch.where((here == 0).all(1) & (there == 0).all(1), 1.0, cosines)


def _same_lengths(here: Tensor, there: Tensor, limit: float, folder: Path) -> None:
    """Raises GuieError if lengths [n] of features are off those that were computed here by more than a share."""
    differ = torch.where(there == here, 0.0, (there / here - 1).abs())  # zeros too
    worst = int(differ.argmax())
    if differ[worst] > limit:
        normalised = "; were they normalised?" * bool((there - 1).abs().max() < 0.01)
        raise GuieError(
            f"{shown(folder)}: lengths differ: an image that was computed here has features of length "
            f"{there[worst]:.4g} in the files instead of {here[worst]:.4g}{normalised or '; were they scaled?'} Export "
            "them as the backbone gives them; --check 0 compares nothing"
        )


def _sample(
    stage: Features,
    workspace: Workspace,
    backbone: Backbone,
    manifest: Manifest,
    rows: NDArray[np.int64],
    blocks: list[NDArray[np.float32]],
    check: int,
) -> tuple[Tensor, Tensor]:
    """Features [n, D] of a few images, computed here and by the files."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, check).round().astype(int))
    ends = np.cumsum([len(block) for block in blocks])
    there = []
    for row in chosen:
        number = int(np.searchsorted(ends, row, side="right"))
        there.append(blocks[number][row - ends[number] + len(blocks[number]), : backbone.features].astype(np.float64))
    view = stage.seen_by(backbone)
    batch_size = min(len(chosen), workspace.profile.micro_batch("features", 64))
    extractor = Extractor(backbone, device_of(workspace.profile), batch_size=batch_size, name="check")
    refs = [manifest.images()[row] for row in rows[chosen]]
    target = getattr(view, "size", backbone.image_size)
    here = features_of(extractor, refs, view, target=target, seed=stage.seed, workers=workspace.profile.workers)
    return here.double(), torch.from_numpy(np.stack(there))


def _save(file: IO[bytes], array: NDArray[Any]) -> None:
    whole = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
    file.write(whole.data.cast("B"))  # numpy's own writing forgets why it failed, such as a full disk
    file.flush()
    os.fsync(file.fileno())  # so that a full disk is told before any file has its name
