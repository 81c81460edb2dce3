"""Embeddings of images by a trained model: read ahead, in batches, and kept so that stopped work goes on."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import atomic_write, explain, explain_os_errors
from guie_core.interrupt import Stop, interruptible
from guie_core.processors import threads
from guie_core.profiles import Profile
from guie_core.progress import bar
from guie_core.wording import plural, shown
from guie_datasets import BadImage, Dataset, Finding, Quarantine, decode
from guie_datasets.checks import enough_max_bad
from guie_datasets.images.reading import Reader, ordered_map
from guie_train.allocator import caching_allocator
from guie_train.prediction import outputs
from guie_train.prediction.inputs import Rows, listed
from guie_train.prediction.kept import Kept
from guie_train.prediction.models import Model, ModelFile

VERSION = 2
FLUSH_SECONDS = 30.0  # between two shards on disk; what a kill can cost
SHARD = 16_384  # images at most in a shard
BYTES_AT_ONCE = 2**29  # of prepared images in a batch: raw photos of 30 megapixels would fill the memory otherwise
PATIENCE = 1000  # images that are looked at before bad ones end it: to mend one at a time is a nuisance
_SHOWN = 10  # bad images that an error lists
_DISTRIBUTIONS = ("guie-datasets", "guie-models", "guie-train", "torch")


@dataclass(frozen=True)
class Prediction:
    """What came out: the file, how many embeddings of how many dimensions, how many bad images and other files were
    left out, and where they are listed; images a second of this call. reused: it was complete before."""

    output: Path
    images: int
    dimension: int
    bad: int
    left_out: int
    quarantine: Path
    rate: float = 0.0
    reused: bool = True


def predict(
    model: ModelFile,
    data: Sequence[Dataset],
    output: Path,
    *,
    profile: Profile,
    batch_size: int | None = None,
    workers: int | None = None,
    normalise: bool = True,
    max_bad: float = 0.001,
    fresh: bool = False,
) -> Prediction:
    """Embed the images of `data`, in order, and write `output` (.parquet or .npy, see `outputs.write`).

    Finished batches are kept in `<output>.partial`: the same call goes on from there, and ends with the same bytes on
    the same machine. So does a call with some images mended, removed or added: those whose place, file size and date
    are the same are not embedded again. An output that is complete already is left as it is. Images that cannot be
    read, decoded or embedded are listed in `<output's stem>.quarantine.csv`, and what the data sets pass over as well.

    A batch is held in memory, and a batch ahead; of each image 8 bytes, and some 100 for a moment when it goes on.

    Args:
        normalise: give embeddings the L2 norm 1; otherwise they are as the model gives them.
        max_bad: the share of the images that may be bad.
        fresh: begin anew instead of going on, and replace an output of another model or of other images.

    Raises:
        UsageError: the output, or what a stopped call left, was made by another model, of other images alone or in
            another way (it is told which), or belongs to somebody else.
        Interrupted: after Ctrl-C; what is done is kept.
        GuieError: too many bad images, or as the model and the data sets do.
    """
    output = output.expanduser().absolute()
    outputs.check_name(output, [model.path])
    partial = output.with_name(f"{output.name}.partial")
    before = outputs.provenance(output)
    with _locked(partial, output), interruptible() as stop:
        rows = listed(data, partial / "rows.arrow")
        if stop:
            raise Interrupted(f"{plural(len(rows), 'image')} were listed, and nothing else was done")
        about = {
            "version": VERSION,
            "model": {"name": model.path.name, "kind": model.kind, "hash": model.digest, "view": model.view},
            "options": {
                "normalise": normalise,
                "batch_size": batch_size or profile.micro_batch("features", 64),
                "device": profile.device,
                "dtype": profile.dtype,
            },
            "input": {"images": len(rows), "digest": rows.digest},
        }
        about = json.loads(json.dumps(about))
        now = about | {"versions": {name: version(name) for name in _DISTRIBUTIONS}}
        del now["input"]  # each image is known by its key
        state = partial / "state.json"
        if fresh or (Kept.files(partial) and not Kept(partial).embeddings):
            Kept.clear(partial)
        if Kept.files(partial):
            _same(_read(state), now, f"{shown(partial)} holds what a stopped prediction has done, which", "Add")
        elif before is not None and not fresh:
            _same(before, about, f"{shown(output)} is there already, and", "Choose another --output, or add")
            return _there(output, before, max_bad)
        else:
            with atomic_write(state, "w") as file:
                json.dump(now, file, indent=1)
        work = _Work(rows, Kept(partial), output, normalise, max_bad, data)
        if len(work.kept) and not work.done:
            raise UsageError(
                f"{shown(partial)} holds what a stopped prediction of other images has done. "
                "Choose another --output, or add --fresh to begin anew"
            )
        work.judge()
        first, seconds = work.done, 0.0
        if first < len(rows):
            opened = model.open(profile, batch_size)
            start = time.monotonic()
            try:
                with caching_allocator():
                    work.run(opened, workers or opened.workers or threads(), stop)
            except Interrupted as stopped:
                raise Interrupted(f"{stopped}{' if --fresh is left out' if fresh else ''}") from None
            seconds = time.monotonic() - start
        quarantine = work.write_quarantine()
        good, dimension = len(rows) - work.bad, work.kept.dimension
        about |= {"images": good, "dimension": dimension, "bad": work.bad_images, "versions": now["versions"]}
        about["model"]["path"] = str(model.path.absolute())
        outputs.write(output, work.blocks, good, dimension, about)
        Kept.clear(partial)
    rate = (len(rows) - first) / seconds if seconds else 0.0
    passed_over = sum(item.count for item in rows.left_out if not item.bad)
    return Prediction(output, good, dimension, work.bad_images, passed_over, quarantine, rate, reused=False)


@dataclass(slots=True)
class _Item:
    """An image that was read: its key, its hash and what the model makes of it, or what is wrong."""

    key: bytes
    hash: bytes | None
    prepared: Any
    reason: str = ""


class _Work:
    """The rows, what is kept of them, and what goes on in between.

    numbers: of each row's result among those that are kept, -1 where there is none yet [N].
    """

    def __init__(
        self, rows: Rows, kept: Kept, output: Path, normalise: bool, max_bad: float, data: Sequence[Dataset]
    ) -> None:
        self.rows, self.kept, self.output, self.data = rows, kept, output, data
        self.normalise, self.max_bad = normalise, max_bad
        self.numbers = kept.find(rows.keys)

    @property
    def done(self) -> int:
        return int((self.numbers >= 0).sum())

    @property
    def bad(self) -> int:
        """Rows that are known to be bad."""
        return len(self._bad_rows())

    def _bad_rows(self) -> NDArray[np.int64]:
        known = np.flatnonzero(self.numbers >= 0)
        return known[self.kept.bad()[self.numbers[known]]]

    @property
    def _left_out(self) -> int:
        """Images that the data sets could give no row for."""
        return sum(item.count for item in self.rows.left_out if item.bad)

    @property
    def bad_images(self) -> int:
        return self.bad + self._left_out

    def run(self, model: Model[Any], workers: int, stop: Stop) -> None:
        """Embed what is left; shards are written now and then, at the ends of batches."""
        total, left = len(self.rows), np.flatnonzero(self.numbers < 0)
        window = max(4 * workers, model.batch_size if model.workers is None else 0)
        with ExitStack() as stack:
            stack.enter_context(model)
            reader = stack.enter_context(Reader())
            items = ordered_map(lambda row: self._read(int(row), reader, model), left, workers, window)
            stack.enter_context(closing(items))
            progress = stack.enter_context(bar(total, "predict", initial=total - len(left)))
            pending: list[pa.Table] = []
            due = time.monotonic() + FLUSH_SECONDS
            bad, done = self.bad_images, 0
            while done < len(left):
                # a model that runs in the threads that read isn't waited for as data is
                with progress.waiting() if model.workers is None else nullcontext():
                    batch = self._batch(items, model)
                embedded = self._embed(batch, model)
                pending.append(embedded)
                done += len(batch)
                bad += embedded.num_rows - embedded.column("reason").null_count
                progress.advance(len(batch))
                too_many = self._too_many(bad, total - len(left) + done)
                # only whole batches are kept: the ones that follow are then the same whether or not this call goes on
                full = done == len(left) or sum(map(len, pending)) >= SHARD
                if stop or too_many or full or time.monotonic() > due:
                    self._flush(pending, left[:done])
                    due = time.monotonic() + FLUSH_SECONDS
                if too_many:
                    self.judge()
                if stop and done < len(left):
                    self.write_quarantine()
                    raise Interrupted(
                        f"{self.done:,} of {plural(total, 'image')} are done and kept; the same command goes on"
                    )

    def _batch(self, items: Iterator[_Item], model: Model[Any]) -> list[_Item]:
        """Where a batch ends follows from the images alone, bad ones counted, so that it is always the same."""
        batch: list[_Item] = []
        held = 0
        for item in items:
            batch.append(item)
            held += 0 if item.reason else model.held(item.prepared)
            if len(batch) >= model.batch_size or held >= BYTES_AT_ONCE:
                break
        return batch

    def _read(self, row: int, reader: Reader, model: Model[Any]) -> _Item:
        ref, key = self.rows.image(row), self.rows.value("key", row)
        try:
            data = reader.read(ref)
        except GuieError as error:
            return _Item(key, None, None, str(error).removeprefix(f"{ref}: "))
        found = hashlib.blake2b(data, digest_size=16).digest()
        if self.rows.value("expected", row) not in (None, found):
            return _Item(key, found, None, "its bytes have changed since it was prepared")
        try:
            return _Item(key, found, model.prepare(decode(data)))
        except BadImage as error:
            return _Item(key, found, None, error.reason)

    def _embed(self, batch: list[_Item], model: Model[Any]) -> pa.Table:
        good = [number for number, item in enumerate(batch) if not item.reason]
        embeddings = np.zeros((len(batch), model.dimension), np.float32)
        if good:
            found = model.embed([batch[number].prepared for number in good])
            if found.shape != (len(good), model.dimension):
                raise GuieError(f"the model gives {list(found.shape)} for {len(good)} images")
            embeddings[good] = _normalised(found) if self.normalise else found
            for number in good:
                if not np.isfinite(embeddings[number]).all():
                    batch[number].reason = "its embedding is not finite"
        fine = np.array([not item.reason for item in batch])
        return pa.table(
            {
                "key": pa.array([item.key for item in batch], pa.binary(16)),
                "hash": pa.array([item.hash for item in batch], pa.binary(16)),
                "reason": pa.array([item.reason or None for item in batch], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(np.where(fine[:, None], embeddings, 0).ravel()), model.dimension
                ),
            }
        )

    def _flush(self, pending: list[pa.Table], rows: NDArray[np.int64]) -> None:
        """Keeps the results of the last of these rows."""
        results = pa.concat_tables(pending)
        pending.clear()
        before = len(self.kept)
        self.kept.add(results)
        self.numbers[rows[-len(results) :]] = np.arange(before, len(self.kept))

    @property
    def _total(self) -> int:
        return len(self.rows) + self._left_out

    def _too_many(self, bad: int, done: int) -> bool:
        """Whether so many cannot be left out, once enough was looked at; `done` rows were."""
        enough = done >= min(len(self.rows), PATIENCE)
        return (enough and bad > self.max_bad * self._total) or bad == self._total

    def judge(self) -> None:
        """Raises GuieError if there are too many bad images."""
        bad, done = self.bad_images, self.done
        if not self._too_many(bad, done):
            return
        table = self.write_quarantine()
        listed = list(itertools.islice((each for each in self._findings() if each.kind == "bad"), _SHOWN))
        first = "\n".join(f"  {finding.place}: {finding.reason}" for finding in listed)
        more = f"\n  and {bad - len(listed):,} more" if bad > len(listed) else ""
        advice = next(filter(None, (each.advice(listed[0].reason) for each in self.data)), "")
        if bad == self._total:
            raise GuieError(
                f"None of the images can be used, {self._total:,} in all:\n{first}{more}\n"
                f"The list is in {shown(table)}. {advice}".rstrip()
            )
        looked, enough, others = "", enough_max_bad(bad, self._total), ""
        if done < len(self.rows):
            known = done + self._left_out
            looked, others = f" ({known:,} were looked at)", ", if no larger share of the others is bad"
            enough = enough_max_bad(bad, known)
        raise GuieError(
            f"{bad:,} of {plural(self._total, 'image')} cannot be used{looked}, more than --max-bad {self.max_bad:g} "
            f"allows:\n{first}{more}\nThe list is in {shown(table)}. Mend or remove them, or add --max-bad "
            f"{enough:g}{others}: then the same command goes on with the others"
        )

    def _findings(self) -> Iterator[Finding]:
        for item in self.rows.left_out:
            yield Finding("bad" if item.bad else "left out", item.place, item.reason, count=item.count)
        for row in map(int, self._bad_rows()):
            source, label, name = (self.rows.value(column, row) for column in ("source", "label", "name"))
            reason = self.kept.reason(int(self.numbers[row]))
            yield Finding("bad", str(self.rows.image(row)), reason, source, label, name=name)

    def write_quarantine(self) -> Path:
        """Lists what is bad so far and what was passed over; no list where there is nothing."""
        path = outputs.quarantine_of(self.output)
        found = Quarantine(self._findings(), len(self.rows), self.kept.folder)
        if found:
            found.write(path)
        else:
            path.unlink(missing_ok=True)
        return path

    def blocks(self) -> Iterator[pa.Table]:
        """The good rows, from as many images at a time whatever the shards are."""
        for first in range(0, len(self.rows), outputs.BLOCK):
            said = self.rows.table.slice(first, outputs.BLOCK)
            found = self.kept.take(self.numbers[first : first + outputs.BLOCK])
            columns = [found.column("hash") if name == "hash" else said.column(name) for name in outputs.COLUMNS.names]
            block = pa.table([*columns, found.column("embedding")], names=[*outputs.COLUMNS.names, "embedding"])
            yield block.filter(found.column("reason").is_null())


def _normalised(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of norm 1, computed in float64; not finite for one of length 0."""
    wide = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float32] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except ValueError as error:
        raise GuieError(f"{path} is damaged ({error}); add --fresh to begin anew") from error


def _there(output: Path, about: Mapping[str, Any], max_bad: float) -> Prediction:
    """An output that is complete. Raises GuieError if more bad images were left out than may be now."""
    bad, total = about["bad"], about["images"] + about["bad"]
    if bad > max_bad * total:
        raise GuieError(
            f"{shown(output)} is there already, without {bad:,} of {plural(total, 'image')}, more than --max-bad "
            f"{max_bad:g} allows. Mend or remove them and add --fresh, or add --max-bad "
            f"{enough_max_bad(bad, total):g}"
        )
    return Prediction(output, about["images"], about["dimension"], bad, 0, outputs.quarantine_of(output))


def _same(then: Mapping[str, Any], now: Mapping[str, Any], what: str, choice: str) -> None:
    """Raises UsageError, with what differs, unless both tell of the same prediction."""
    problems = []
    model, other = then.get("model", {}), now["model"]
    if model.get("hash") != other["hash"] or model.get("view") != other["view"]:
        problems.append(f"the model is another: {model.get('name')} then, {other['name']} now, and not the same bytes")
    listed, given = then.get("input", {}), now.get("input", {})
    if given and listed.get("digest") != given["digest"]:
        images, count = listed.get("images"), given["images"]
        counts = f"{images:,} then, {count:,} now" if images != count else "as many, but not the same names or dates"
        problems.append(f"the images are others: {counts}")
    for group in ("options", "versions"):
        for name, value in now.get(group, {}).items():
            was = then.get(group, {}).get(name)
            if was != value:
                problems.append(f"{name} was {was}, is {value}")
    if then.get("version") != now["version"]:
        problems.append(f"format {then.get('version')}, and this guie-train writes {now['version']}")
    if problems:
        raise UsageError(
            f"{what} was made differently:\n  " + "\n  ".join(problems) + f"\n{choice} --fresh to make it anew"
        )


@contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """A folder that no other process works in meanwhile; it goes away again where nothing was left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GuieError(explain(error, output)) from error
    with explain_os_errors(folder), open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is writing {shown(output)} at this moment") from None
        try:
            yield
        finally:
            if not Kept.files(folder):
                shutil.rmtree(folder, ignore_errors=True)
