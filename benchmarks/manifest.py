"""Preparing more and more images, and opening what comes out: time and memory.

    python benchmarks/manifest.py [--rows 500000 1000000 2500000 5000000] [--shards 60] [--workers 2] [--folder FOLDER]

The images are PNGs of one pixel, no two alike, packed into shards: nearly all of the time is what a row costs, whatever
it shows. Each number of rows is prepared in a process of its own. Memory is what it takes above what it had when all
was imported: "own" is the process's own memory, "peak" counts mapped files as well, whose pages the system takes back
when it needs them. Then the largest manifest is opened, as it is and with a file for each image.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLASS = 25  # images of a class
BYTES = 72  # of an image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 1_000_000, 2_500_000, 5_000_000])
    parser.add_argument("--shards", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work, instead of the temporary folder")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # what, folder
    options = parser.parse_args()
    if options.run:
        what, folder = options.run
        works = {"prepare": lambda: prepare(Path(folder), options), "spread": lambda: spread(Path(folder))}
        print(json.dumps(works.get(what, lambda: look(Path(folder) / what))()))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        make_shards(folder, max(options.rows), options.shards)
        print(f"$ python {' '.join(sys.argv)}")
        print(f"{options.workers} workers, {platform.machine()}, Python {platform.python_version()}")
        names = ("seconds", "rows/s", "us/row", "ratio", "own", "peak", "write s", "file")
        print(f"{'rows':>10}" + "".join(f"{name:>9}" for name in names))
        first = 0.0
        for rows in sorted(options.rows):
            each = child("prepare", folder, options, rows)
            cost = each["seconds"] / rows * 1e6
            first = first or cost
            print(
                f"{rows:>10,}{each['seconds']:>9.1f}{rows / each['seconds']:>9,.0f}{cost:>8.1f}{cost / first:>7.2f}"
                f"{each['own']:>6.0f} MB{each['peak']:>6.0f} MB{each['write']:>9.1f}{each['file'] / 1e6:>6.0f} MB",
                flush=True,
            )
        child("spread", folder, options, 0)
        print(f"\n{rows:,} rows opened:")
        for name, text in {"shards.parquet": f"{options.shards} shards", "files.parquet": "a file each"}.items():
            print(f"  {text}, {(folder / name).stat().st_size / 1e6:.0f} MB on disk")
            for what, seconds, own, peak in child(name, folder, options, 0):
                print(f"    {what:44}{seconds:>8.3f} s{own:>8.0f} MB own{peak:>8.0f} MB peak")


def child(what: str, folder: Path, options: argparse.Namespace, rows: int) -> Any:
    arguments = ["--run", what, str(folder), "--rows", str(rows), "--workers", str(options.workers)]
    arguments += ["--shards", str(options.shards)]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def image(number: int) -> bytes:
    """A PNG of one pixel, whose colour is the number; packed by "stored", so that all have the same length."""
    pixel = b"\0" + struct.pack(">I", number)[1:]
    data = b"\x78\x01\x01\x04\0\xfb\xff" + pixel + struct.pack(">I", zlib.adler32(pixel))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def make_shards(folder: Path, rows: int, shards: int) -> None:
    assert rows <= 1 << 24
    size = -(-rows // shards)
    for shard in range(shards):
        with open(folder / f"collection-train-{shard:02d}.bin", "wb") as file:
            assert len(image(0)) == BYTES
            file.writelines(image(number) for number in range(shard * size, min(rows, (shard + 1) * size)))


class Memory:
    """The largest memory of this process above what it has now, in MB; looked at ten times a second."""

    def __init__(self) -> None:
        self._now = self._status()
        self._peak = dict(self._now)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        self._end.set()
        self._thread.join()
        return tuple((self._peak[name] - self._now[name]) / 1000 for name in ("RssAnon", "VmRSS"))  # type: ignore

    def _look(self) -> None:
        while True:
            for name, value in self._status().items():
                self._peak[name] = max(self._peak[name], value)
            if self._end.wait(0.1):
                return

    def _status(self) -> dict[str, int]:
        with open("/proc/self/status") as file:
            lines = (line.split() for line in file)
            return {line[0][:-1]: int(line[1]) for line in lines if line[0] in ("RssAnon:", "VmRSS:")}


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    from guie_datasets import Dataset, ImageRef, Row
    from guie_datasets import prepare as prepare_

    class Packed(Dataset):
        def rows(self) -> Iterator[Row]:
            paths = [str(path) for path in sorted(folder.glob("*.bin"))]
            size = paths and os.path.getsize(paths[0]) // BYTES
            for number in range(rows):
                shard, place = divmod(number, size)
                label = number // CLASS
                yield Row(
                    ImageRef(paths[shard], place * BYTES, BYTES), label, "packed", "pixels", name=f"class {label}"
                )

        def count(self) -> int:
            return rows

        def sources(self) -> list[Path]:
            return sorted(folder.glob("*.bin"))

    rows = options.rows[0]
    memory, began = Memory(), time.perf_counter()
    manifest, found = prepare_([Packed()], max_bad=0, workers=options.workers, quarantine=folder / "quarantine.csv")
    seconds = time.perf_counter() - began
    assert (len(manifest), len(found)) == (rows, 0)
    began = time.perf_counter()
    manifest.write(folder / "shards.parquet")
    write = time.perf_counter() - began
    own, peak = memory.stop()
    size = (folder / "shards.parquet").stat().st_size
    return {"seconds": seconds, "own": own, "peak": peak, "write": write, "file": size}


def spread(folder: Path) -> None:
    """The same manifest with a file for each image."""
    import numpy as np

    from guie_datasets import Manifest

    manifest = Manifest.read(folder / "shards.parquet")
    rows = len(manifest)
    manifest = manifest.with_column("offset", np.zeros(rows, np.int64)).with_column("length", np.full(rows, -1))
    paths = [f"/data/collection/class{number // CLASS:06d}/photo{number:08d}.jpg" for number in range(rows)]
    manifest.with_column("path", paths).write(folder / "files.parquet")


def look(path: Path) -> list[tuple[str, float, float, float]]:
    import numpy as np

    from guie_datasets import Manifest

    steps: list[tuple[str, float, float, float]] = []
    memory = Memory()
    began = time.perf_counter()

    def step(what: str) -> None:
        nonlocal memory, began
        seconds = time.perf_counter() - began
        own = (memory._status()["RssAnon"] - memory._now["RssAnon"]) / 1000
        peak = max(memory._peak["VmRSS"], memory._status()["VmRSS"]) - memory._now["VmRSS"]
        steps.append((what, seconds, own, peak / 1000))
        began = time.perf_counter()

    manifest = Manifest.read(path)
    step("Manifest.read")
    labels = manifest.column("label")
    step('column("label")')
    images = manifest.images()
    assert images[len(images) // 2].path
    step("images(), one of them")
    half = manifest.select(labels % 2 == 0)
    assert len(half.images()) == len(half.column("label"))
    step("select half, its images and labels")
    assert len(manifest.digest) == 32
    step("digest")
    assert manifest.table.num_rows == len(np.asarray(labels))
    step("everything, all columns in memory")
    del half, images
    hashes = manifest.column("hash")
    step('column("hash")')
    del hashes
    paths = manifest.column("path")
    assert len(paths) == len(labels)
    step('column("path"), as Python texts')
    memory.stop()
    return steps


if __name__ == "__main__":
    main()
