"""CSV and Parquet tables: any bytes give rows, findings or a GuieError, and no path leaves the root.

    python fuzz/fuzz_tables.py fuzz/seeds/tables -max_total_time=600

The first byte of the input says with which options the rest is read. `--seeds FOLDER` writes the seeds anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["guie_datasets"]):
    from guie_core import GuieError
    from guie_datasets.sets.tables import Table

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"root": FOLDER},
    {"delimiter": ";", "root": FOLDER},
    {"encoding": "utf-16"},
    {"encoding": "gb18030", "delimiter": "\t"},
    {"columns": {"path": "a", "label": "b"}, "root": FOLDER},
    {"columns": {"name": "path", "category": "label"}},
    {"columns": {"source": ""}, "encoding": "latin-1"},
]


def one_input(data: bytes) -> None:
    if not data:
        return
    options = OPTIONS[data[0] % len(OPTIONS)]
    path = FOLDER / "table.csv"
    path.write_bytes(data[1:])
    dataset = Table(path, **options)
    try:
        for row in dataset.rows():
            assert row.label >= 0
            assert row.image.path.startswith(f"{FOLDER}/" if "root" in options else "/")
            assert "/../" not in row.image.path
            "".join((row.image.path, row.source, row.category, row.split, row.role, row.name)).encode()
    except GuieError as error:
        _names_the_file(error, path)
    for item in dataset.left_out():
        assert item.bad
        f"{item.place}{item.reason}".encode()


def _names_the_file(error: GuieError, path: Path) -> None:
    assert str(path) in str(error)
    str(error).encode()


def write_seeds(folder: Path) -> None:
    """Small tables, as pandas and Python's csv write them."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"path": ["a.jpg", "b/文.png", '"c"\n'], "label": [3, 1, 2], "name": ["x", None, "y"]})
    (folder / "csv").write_bytes(b"\0" + frame.to_csv(index=False).encode())
    (folder / "text-labels").write_bytes(b"\1" + frame.assign(label=["cat", "7", "猫"]).to_csv(index=False).encode())
    (folder / "semicolons").write_bytes(b"\2" + frame.to_csv(index=False, sep=";").encode("utf-8-sig"))
    (folder / "utf-16").write_bytes(b"\3" + frame.to_csv(index=False).encode("utf-16"))
    (folder / "outside").write_bytes(b'\5a,b\n../x.jpg,1\n/etc/passwd,2\nb/../../c,3\nc\0d,4\n"open,5\n')
    (folder / "floats").write_bytes(b"\1" + frame.assign(label=[1.0, float("nan"), 2.5]).to_csv(index=False).encode())
    (folder / "parquet").write_bytes(b"\1" + frame.to_parquet())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
