"""Whether the images of a manifest are still there, as they were when it was made."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack

from guie_core import GuieError, Interrupted
from guie_core.interrupt import interruptible
from guie_core.processors import threads
from guie_core.progress import bar
from guie_core.wording import plural
from guie_datasets.images.decoding import BadImage, header_size
from guie_datasets.images.decoding import decode as decode_
from guie_datasets.images.reading import Reader, ordered_map
from guie_datasets.manifest import Manifest
from guie_datasets.quarantine import Finding, Quarantine

_BATCH = 32  # images a thread takes at once


def verify_manifest(manifest: Manifest, *, decode: bool = False, workers: int | None = None) -> Quarantine:
    """What is wrong with the images of a manifest now, in the order of its rows; nothing, if all are as they were.

    Every image is read, by `workers` threads (default: one a core, at most 8), its bytes are compared with the hash,
    and the size that its header says with the manifest's. The hash covers what the checksums of shards do, as far as
    images go; labels are not looked for again. decode: every image is decoded as well, which finds damage that was
    there from the start, and takes about ten times as long.

    Raises Interrupted on Ctrl-C.
    """
    refs, hashes = manifest.images(), manifest.column("hash")
    widths, heights, sources = (manifest.column(name) for name in ("width", "height", "source"))
    labels = manifest.column("original_label" if "original_label" in manifest.column_names else "label")
    found = Quarantine(images=len(manifest))

    def problem(row: int, reader: Reader) -> str:
        try:
            data = reader.read(refs[row])
            if hashlib.blake2b(data, digest_size=16).hexdigest().encode() != hashes[row]:
                return "its bytes are not those that were prepared"
            size = header_size(data)
            if size != (widths[row], heights[row]):
                return f"it is {size[0]} x {size[1]}, and not {widths[row]} x {heights[row]} as the manifest says"
            if decode:
                decode_(data)
        except BadImage as error:
            return error.reason
        except GuieError as error:
            return str(error).removeprefix(f"{refs[row]}: ")
        except Exception as error:  # what a decoder raises on damaged bytes is anything
            return f"{type(error).__name__}: {error}"
        return ""

    workers = threads(workers)
    with ExitStack() as stack:
        reader = stack.enter_context(Reader())
        stop = stack.enter_context(interruptible())
        parts = [range(start, min(start + _BATCH, len(refs))) for start in range(0, len(refs), _BATCH)]
        batches = ordered_map(lambda rows: [problem(row, reader) for row in rows], parts, workers, 4 * workers)
        stack.callback(batches.close)
        progress = stack.enter_context(bar(len(refs), "verify"))
        for rows, problems in zip(parts, batches, strict=True):
            for row, reason in zip(rows, problems, strict=True):
                if reason:
                    found.add(Finding("bad", str(refs[row]), reason, sources[row], int(labels[row])))
            progress.advance(len(rows))
            if stop:
                seen = f"{rows.stop:,} of {plural(len(refs), 'image')}"
                raise Interrupted(f"stopped after {seen}, of which {found.count('bad'):,} are bad; start again for all")
    return found
