"""Measures parts one after the other, each in a process of its own, so that none finds another's memory or threads."""

from __future__ import annotations

import datetime
import itertools
import json
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import digest, explain_os_errors, folder_option
from guie_core.interrupt import interruptible
from guie_core.plugins import local_files
from guie_core.profiles import Profile
from guie_core.progress import bar
from guie_core.run import versions
from guie_core.wording import listing, plural, shown
from guie_datasets import ImageRef
from guie_train.bench import PARTS
from guie_train.bench.machine import this_machine
from guie_train.bench.results import Bench, Part

PHOTOS, MOST_IMAGES = 16, 256
READS = ("decode", "extraction")  # the parts that read images


@dataclass(frozen=True)
class Images:
    """Files to read. told: what tells them from others."""

    refs: Sequence[ImageRef]
    told: dict[str, Any]


def bench(
    parts: Sequence[str],
    *,
    profile: Profile,
    backbone: str,
    images: str | None = None,
    seconds: float = 3.0,
    before: Bench | None = None,
    keep: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Measure `parts` on this machine.

    Args:
        parts: names of `results.PARTS`.
        profile: what to run on, and how.
        backbone: the name of one of kind "backbones", which is given random weights.
        images: a folder, table, manifest, shards or data set whose first images are read; None: photos that are made
            up, the same everywhere.
        seconds: how long a part is measured.
        before: a measurement to go on with; its parts are not measured again.
        keep: called with what is measured so far after each part.

    Raises:
        UsageError: `before` was measured on another machine, with other versions, options or images.
        GuieError: a part failed, or there are no images.
        Interrupted: after Ctrl-C.
    """
    found = Bench(
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        versions={"python": platform.python_version()} | versions(),
        profile=profile.name,
        parts={},
        asked={"backbone": backbone, "dtype": profile.dtype, "images": images, "seconds": seconds},
        missing=tuple(parts),
    )
    if before is not None:
        found = _going_on(before, found)
        parts = found.missing
    with (
        interruptible(),
        tempfile.TemporaryDirectory(prefix="guie-bench-") as folder,
        bar(len(parts), "bench", unit="part") as progress,
    ):
        read = Images([], {})
        if set(parts) & set(READS):
            read = _given(images) if images is not None else _made_up(Path(folder))
            if any(part.work.get(key) != value for part in _reading(found) for key, value in read.told.items()):
                raise _another(["images"])
        task = {
            "profile": {"type": profile.name, "dtype": profile.dtype},
            "backbone": {"type": backbone},
            "images": [[ref.path, ref.offset, ref.length, ref.compression] for ref in read.refs],
            "images_told": read.told,
            "seconds": seconds,
        }
        for name in parts:
            part = in_a_process(name, task, Path(folder))
            done = {**found.parts, name: part}
            found = replace(
                found,
                parts={each: done[each] for each in PARTS if each in done},
                missing=tuple(each for each in found.missing if each != name),
            )
            keep(found)
            progress.advance()
    return found


def _going_on(before: Bench, now: Bench) -> Bench:
    """`before`, with what it lacks of the parts of `now`. Raises UsageError: they would not be one measurement."""

    def about(bench: Bench) -> dict[str, Any]:
        machine = {key: value for key, value in asdict(bench.machine).items() if key != "busy_cores"}
        return {"machine": machine, "versions": bench.versions, "profile": bench.profile, "options": bench.asked}

    differing = [what for what, value in about(now).items() if about(before)[what] != value]
    if differing:
        raise _another(differing)
    machine = max(before.machine, now.machine, key=lambda machine: machine.busy_cores or 0)
    return replace(before, machine=machine, missing=tuple(name for name in now.missing if name not in before.parts))


def _reading(bench: Bench) -> list[Part]:
    """What was measured of parts that read images."""
    return [part for name, part in bench.parts.items() if name in READS]


def _another(differing: Sequence[str]) -> UsageError:
    """What is said of a measurement that can't be gone on with."""
    return UsageError(
        f"it was begun with other {listing(differing)}, so that its figures and new ones are not one measurement.\n"
        "Leave out --resume to measure all parts anew."
    )


def in_a_process(name: str, task: dict[str, Any], folder: Path) -> Part:
    """Measures a part by `python -m guie_train.bench`; `folder` is for what the two say to each other.

    Raises GuieError as the part does, and if the process ends otherwise; Interrupted after Ctrl-C, which ends it.
    """
    question, answer = folder / "task.json", folder / f"{name}.json"
    _write(question, json.dumps({"part": name, "plugins": list(map(str, local_files())), **task}).encode())
    command = [sys.executable, "-m", "guie_train.bench", str(question), str(answer)]
    with open(folder / f"{name}.log", "w+") as log, interruptible() as stop:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                while not _ended(process):
                    if stop:
                        raise Interrupted(f"{name} is not measured")
            finally:
                process.kill()
        if stop:  # Ctrl-C has ended it
            raise Interrupted(f"{name} is not measured")
        log.seek(0)
        said = [line.strip() for line in log if line.strip()] or ["it said nothing"]
    if process.returncode < 0:
        why = " Most often that means that the memory was full." if process.returncode == -signal.SIGKILL else ""
        number = signal.Signals(-process.returncode).name
        raise GuieError(f"{name}: the process that was measuring it was ended by signal {number}.{why} {_others(name)}")
    if process.returncode or not answer.exists():
        raise GuieError(f"{name}: the process that was measuring it failed: {said[-1]}\n{_others(name)}")
    found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise (UsageError if found["exit_code"] == UsageError.exit_code else GuieError)(f"{name}: {found['error']}")
    return Part.from_dict(found)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return False
    return True


def _others(name: str) -> str:
    return f"--only measures the parts without {name}"


def _made_up(folder: Path) -> Images:
    from guie_datasets.images.photos import HEIGHT, WIDTH, photo

    refs = []
    for number in range(PHOTOS):
        path = folder / f"{number}.jpg"
        _write(path, photo(number))
        refs.append(ImageRef(str(path)))
    return Images(refs, {"images": f"{PHOTOS} made-up JPEGs of {WIDTH} x {HEIGHT}"})


def _write(path: Path, data: bytes) -> None:
    with folder_option("TMPDIR"), explain_os_errors(path):
        path.write_bytes(data)


def _given(images: str) -> Images:
    from guie_train.prediction.inputs import recognised

    rows = itertools.chain.from_iterable(dataset.rows() for dataset in recognised([images]))
    refs = [row.image for row in itertools.islice(rows, MOST_IMAGES)]
    if not refs:
        raise UsageError(f"--images {shown(images)}: there is no image in it")
    contents = digest(*(ref.read() for ref in refs))  # and none of them comes from a cold disk afterwards
    return Images(refs, {"images": f"{plural(len(refs), 'image')} of {Path(images).name}", "digest": contents[:16]})
