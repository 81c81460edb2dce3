"""Embeddings as files: Parquet with all that is known of each image, or a NumPy array with a table beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guie_core import GuieError, UsageError
from guie_core.files import atomic_write
from guie_core.wording import shown
from guie_datasets.commands.outputs import check_beside, check_output, is_quarantine, table_of

_METADATA = b"guie.predictions"
BLOCK = 16_384  # rows that are written at a time
SUFFIXES = (".parquet", ".npy")

#: What a file says of each image, besides its embedding.
COLUMNS = pa.schema(
    [
        ("path", pa.large_string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),  # -1: the whole file
        ("compression", pa.string()),
        ("hash", pa.binary(16)),  # BLAKE2b of the encoded bytes, as in a manifest
        ("label", pa.int64()),  # null: not known
        *((name, pa.string()) for name in ("name", "source", "category", "split", "role")),
    ]
)

Blocks = Callable[[], Iterator[pa.Table]]  # the good rows in order: COLUMNS and "embedding", a fixed-size list


def check_name(output: Path, inputs: Iterable[Path]) -> None:
    """Raises UsageError if no embeddings can be written under this name: it, or that of a file which goes with it, is
    an input's or somebody else's. Whether embeddings that are there may be replaced, `provenance` helps to say."""
    read = list(inputs)
    check_output(output, dict.fromkeys(SUFFIXES, _any), inputs=read, example="embeddings.parquet")
    for path in beside(output):
        if any(each.exists() and path.exists() and path.samefile(each) for each in read):
            raise UsageError(f"{shown(path)}, which goes with {shown(output)}, is read. Choose another --output")
        check_beside(path, output, _records if path.suffix == ".json" else table_of(COLUMNS.names), force=None)
    check_beside(quarantine_of(output), output, is_quarantine, force=None)


def quarantine_of(output: Path) -> Path:
    """Where bad images are listed."""
    return output.with_suffix(".quarantine.csv")


def _any(path: Path) -> bool:
    return True


def _records(path: Path) -> bool:
    """Whether it is the .json of an array that `guie predict` wrote."""
    try:
        return "model" in json.loads(path.read_text())
    except (ValueError, TypeError, OSError):
        return False


def beside(output: Path) -> tuple[Path, ...]:
    """The other files that belong to an output."""
    return () if output.suffix == ".parquet" else (output.with_suffix(".csv"), output.with_suffix(".json"))


def provenance(output: Path) -> dict[str, Any] | None:
    """What an output that is there says of itself; None where it is not there.

    Raises UsageError: a file of that name which was not made by `guie predict`.
    """
    if not output.exists():
        return None
    try:
        if output.suffix == ".parquet":
            text = (pq.read_schema(output).metadata or {})[_METADATA].decode()
        else:
            text = output.with_suffix(".json").read_text()
        about = json.loads(text)
        if isinstance(about, dict) and "model" in about:
            return about
    except (pa.ArrowException, OSError, KeyError, ValueError):
        pass
    raise UsageError(
        f"{shown(output)} is there already, and was not made by guie predict. Choose another --output, or move it away"
    )


def write(output: Path, blocks: Blocks, images: int, dimension: int, about: Mapping[str, Any]) -> None:
    """Writes `images` good rows; the files appear when they are complete, `output` the last.

    Raises GuieError: the disk is full or not writable.
    """
    text = json.dumps(about, indent=1)
    if output.suffix == ".parquet":
        schema = COLUMNS.append(pa.field("embedding", pa.list_(pa.float32(), dimension)))
        schema = schema.with_metadata({_METADATA: text.encode()})
        texts = [field.name for field in COLUMNS if field.type == pa.string()]
        with (
            atomic_write(output) as file,
            pq.ParquetWriter(
                # embeddings don't compress
                file,
                schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=texts,
                write_page_checksum=True,
            ) as writer,
        ):
            for block in blocks():
                writer.write_table(block.cast(schema))
        return
    rows, record = beside(output)
    with atomic_write(rows, "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS.names)
        for block in blocks():
            columns = [block.column(name).to_pylist() for name in COLUMNS.names]
            columns[COLUMNS.names.index("hash")] = [value.hex() for value in block.column("hash").to_pylist()]
            table.writerows(zip(*columns, strict=True))
    with atomic_write(record, "w") as file:
        file.write(text)
    with atomic_write(output) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (images, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks():
            file.write(embeddings_of(block).astype("<f4", copy=False).tobytes())


def read(output: Path) -> tuple[pa.Table, np.ndarray[Any, np.dtype[np.float32]]]:
    """The columns of a Parquet file of embeddings without them, and they as an array [N, E].

    Raises GuieError: it is damaged.
    """
    try:
        table = pq.read_table(output, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise GuieError(f"{shown(output)} is damaged ({error}); delete it and run again") from error
    return table.drop_columns(["embedding"]), embeddings_of(table)


def embeddings_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The column "embedding" as an array [N, E]."""
    column = table.column("embedding")
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate([np.empty(0, np.float32), *values])
    return flat.reshape(len(column), column.type.list_size)
