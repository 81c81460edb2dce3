from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from guie_core import GuieError
from guie_models import checkpoints
from guie_models.checkpoints import read_checkpoint

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def test_tensors_and_values_are_torchs_own(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    content = {
        "model": OrderedDict(
            transposed=base.view(4, 6).T, part=base[3:7], scalar=torch.tensor(7), empty=torch.zeros(0, 3)
        ),
        "list": [torch.ones(2), (torch.zeros(1), "text")],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "epoch": 12,
        "dtypes": {str(dtype): torch.ones(3).to(dtype) for dtype in DTYPES},
    }
    torch.save(content, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    again = torch.load(tmp_path / "x.pt", weights_only=True)
    assert found.values == {"list.1.1": "text", "epoch": 12}
    assert found.objects == ()
    flat = {f"model.{name}": value for name, value in again["model"].items()}
    flat |= {f"dtypes.{name}": value for name, value in again["dtypes"].items()}
    flat |= {"list.0": again["list"][0], "list.1.0": again["list"][1][0], "parameter": again["parameter"].data}
    assert found.tensors.keys() == flat.keys()
    for name, value in flat.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value), name


def test_state_dictionaries_with_their_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "x.pt")  # an OrderedDict with an attribute
    found = read_checkpoint(tmp_path / "x.pt").tensors
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


def test_safetensors_files_are_read_too(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "x.safetensors").tensors["a.weight"], torch.ones(2))
    (tmp_path / "y.safetensors").write_bytes(b"{}")
    with pytest.raises(GuieError, match=r"y\.safetensors: not a safetensors file"):
        read_checkpoint(tmp_path / "y.safetensors")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "executed"
    content = {
        "model": {"weight": torch.ones(2)},
        "evil": Evil(f"touch {witness}"),
        "more": [getattr, print, eval, Path("x")],
    }
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    assert not witness.exists()
    found = read_checkpoint(tmp_path / "x.pt")
    assert not witness.exists()
    assert list(found.tensors) == ["model.weight"]
    assert {"posix.system", "pathlib.PosixPath"} <= set(found.objects)
    assert any(name.endswith("eval") for name in found.objects)
    with pytest.raises(pickle.UnpicklingError):  # which is why there is a reader of ours
        torch.load(tmp_path / "x.pt", weights_only=True)


def test_names_are_not_imported(tmp_path: Path) -> None:
    module = types.ModuleType("guie_evil")
    exec("class Thing:\n    pass\nThing.__module__ = 'guie_evil'", module.__dict__)
    sys.modules["guie_evil"] = module
    try:
        thing = module.Thing()
        thing.tensor = torch.ones(1)
        torch.save({"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": thing}, tmp_path / "x.ckpt")
    finally:
        del sys.modules["guie_evil"]
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert list(found.tensors) == ["state_dict.weight"]
    assert found.objects == ("guie_evil.Thing",)
    assert "guie_evil" not in sys.modules


def _archive(path: Path, program: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def _tensor_program(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4) -> bytes:
    """A pickle of {"x": tensor}, such as torch would write it, with numbers of one's choice."""

    class Call:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    class Storage: ...

    out = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Storage) else None

    Pickler(out, 2).dump({"x": Call()})
    return out.getvalue()


FLOATS = torch.arange(4.0).numpy().tobytes()


@pytest.mark.parametrize(
    ("numbers", "storages", "said"),
    [
        ((0, (5,), (1,)), {"0": FLOATS}, r"shape \[5\] reaches beyond its storage of 4 values"),
        ((2, (2, 2), (2, 1)), {"0": FLOATS}, "reaches beyond"),
        ((-1, (2,), (1,)), {"0": FLOATS}, r"shape \[2\] and strides \[1\]"),
        ((0, (2,), (-1,)), {"0": FLOATS}, "strides"),
        ((0, (10**9,), (0,)), {"0": FLOATS}, r"shape \[1000000000\] over a storage of 4"),
        ((0, (4,), (1,)), {"0": FLOATS[:-1]}, "storage 0 has 15 bytes, not 16"),
        ((0, (4,), (1,)), {}, "no item named 'archive/data/0'"),
    ],
)
def test_tensors_stay_inside_their_storages(
    tmp_path: Path, numbers: tuple[int, tuple[int, ...], tuple[int, ...]], storages: dict[str, bytes], said: str
) -> None:
    path = _archive(tmp_path / "x.pt", _tensor_program(*numbers), storages)
    with pytest.raises(GuieError, match=said) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_the_archives_of_that_test_are_read_where_they_are_right(tmp_path: Path) -> None:
    path = _archive(tmp_path / "x.pt", _tensor_program(1, (3,), (1,)), {"0": FLOATS})
    assert read_checkpoint(path).tensors["x"].tolist() == [1.0, 2.0, 3.0]


def test_a_pickle_that_contains_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"weight": torch.ones(1)}
    loop["again"] = loop
    loop["many"] = [loop["weight"]] * 3
    torch.save(loop, tmp_path / "x.pt")
    assert {"weight", "many.0"} <= read_checkpoint(tmp_path / "x.pt").tensors.keys()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes. is no checkpoint"),
        (b"\x80\x02}q\x00.", "no zip archive, or it was cut short"),
        (pickle.dumps({"a": 1}), "no zip archive"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(GuieError, match=said):
        read_checkpoint(tmp_path / "x.pt")


def test_what_is_missing_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"none.pt: no such file"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"epoch": 3, "where": Path("x")}, tmp_path / "x.pt")
    with pytest.raises(GuieError, match=r"holds no tensors\. It names pathlib\.PosixPath"):
        read_checkpoint(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(GuieError, match=r"it has no data\.pkl"):
        read_checkpoint(tmp_path / "y.pt")


def test_a_file_cut_short_at_any_place(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(100)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(GuieError, match=r"cut\.pt"):
            read_checkpoint(tmp_path / "cut.pt")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 2**16))
def test_any_pickle_gives_tensors_or_an_error(tmp_path: Path, noise: bytes, seed: int) -> None:
    program = bytearray(_tensor_program(0, (4,), (1,)))
    for number, byte in enumerate(noise):
        program[(seed * 31 + number * 7) % len(program)] = byte
        if number > 6:
            break
    path = _archive(tmp_path / "x.pt", bytes(program), {"0": FLOATS})
    try:
        found = read_checkpoint(path)
    except GuieError:
        return
    assert all(tensor.numel() <= 4 for tensor in found.tensors.values())


def _tensor_of(key: bytes, count: int) -> bytes:
    """The instructions that put a tensor [count] on the stack."""
    number = bytes([count])
    return b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + (
        key + b"X\x03\x00\x00\x00cpuK" + number + b"tQK\x00K" + number + b"\x85K\x01\x85\x89}tR"
    )


HEAD = b"\x80\x05}X\x01\x00\x00\x00w" + _tensor_of(b"0", 1)
"""A dictionary, the key "w" and its tensor."""
FUNCTION = b"ctorch._utils\n_rebuild_tensor_v2\n"
ATTRIBUTES = b"(N}X\x0c\x00\x00\x00__defaults__K\x01K\x02\x86stb"


@pytest.mark.parametrize(
    "program",
    [
        # Tensor.__setstate__((another, 0, (2**40,), (0,))): a tensor of 4 TiB
        HEAD + b"(" + _tensor_of(b"1", 1) + b"K\x00\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85K\x00\x85tbs.",
        HEAD + b"s" + FUNCTION + ATTRIBUTES + b"0.",
        HEAD + b"K\x00K\x05ss.",  # tensor[0] = 5
        HEAD + b"(K\x00K\x05us.",
        HEAD + b"K\x05as.",
        HEAD + b"(K\x05es.",
        HEAD + b"(K\x05\x90s.",
    ],
    ids=["BUILD a tensor", "BUILD a function", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS"],
)
def test_what_was_made_is_not_changed(tmp_path: Path, program: bytes) -> None:
    path = _archive(tmp_path / "x.pt", program, {"0": FLOATS[:4], "1": FLOATS[:4]})
    with pytest.raises(GuieError, match=r"x\.pt: its pickle changes a (Tensor|function) after it was made"):
        read_checkpoint(path)
    assert checkpoints._tensor.__defaults__ is None


def test_the_program_of_that_test_is_read_where_it_changes_nothing(tmp_path: Path) -> None:
    path = _archive(tmp_path / "x.pt", HEAD + b"s.", {"0": FLOATS[:4]})
    assert read_checkpoint(path).tensors["w"].tolist() == [0.0]


LENGTH = 2**30


@pytest.mark.parametrize(
    "instruction",
    [
        b"\x96" + struct.pack("<Q", LENGTH),  # BYTEARRAY8
        b"\x8e" + struct.pack("<Q", LENGTH),  # BINBYTES8
        b"\x8d" + struct.pack("<Q", LENGTH),  # BINUNICODE8
        b"\x8b" + struct.pack("<i", LENGTH),  # LONG4
        b"\x95" + struct.pack("<Q", LENGTH),  # FRAME
        b"T" + struct.pack("<i", LENGTH),  # BINSTRING
        b"X" + struct.pack("<I", LENGTH),  # BINUNICODE
        b"B" + struct.pack("<I", LENGTH),  # BINBYTES
        b"Nr" + struct.pack("<I", LENGTH),  # LONG_BINPUT
        b"Np1073741824\n",  # PUT
        b"j" + struct.pack("<I", LENGTH),  # LONG_BINGET
    ],
)
def test_a_few_bytes_do_not_ask_for_memory(tmp_path: Path, instruction: bytes) -> None:
    path = _archive(tmp_path / "x.pt", b"\x80\x05" + instruction + b".", {})
    tracemalloc.start()
    try:
        with pytest.raises(GuieError, match=r"x\.pt: "):
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["tuple", "frozenset"])
def test_tuples_of_tuples_are_not_hashed_for_ever(tmp_path: Path, kind: str) -> None:
    inner: Any = (1, 2)
    for _ in range(60):
        inner = (inner, inner) if kind == "tuple" else (inner, frozenset([1, 2]), inner)
    path = _archive(tmp_path / "x.pt", pickle.dumps([inner], 4), {})
    with pytest.raises(GuieError, match=r"its pickle holds a tuple of \d+ values"):
        read_checkpoint(path)
    content = {"weight": torch.ones(1), "table": {(1, (2, 3)): 4}, "set": {frozenset([5])}}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=4)
    assert list(read_checkpoint(tmp_path / "x.pt").tensors) == ["weight"]


def test_a_long_key_does_not_stand_in_many_places(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "x" * 5000: 1}, tmp_path / "x.pt")
    with pytest.raises(GuieError, match=r"x\.pt: a place in it, x{40}\.\.\., has 5000 letters"):
        read_checkpoint(tmp_path / "x.pt")


def test_byte_arrays_are_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "data": bytearray(b"abc")}, tmp_path / "x.pt", pickle_protocol=5)
    assert list(read_checkpoint(tmp_path / "x.pt").tensors) == ["weight"]


@pytest.mark.parametrize("compressed", ["data.pkl", "data/0", "byteorder"])
def test_compressed_members_are_not_unpacked(tmp_path: Path, compressed: str) -> None:
    members = {"data.pkl": _tensor_program(0, (4,), (1,)), "data/0": FLOATS, "byteorder": b"little"}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name, data in members.items():
            kind = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(f"archive/{name}", data, kind)
    with pytest.raises(GuieError, match=rf"x\.pt: archive/{compressed} is compressed, which no checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("order", [b"big", b"", b"little" * 2**20])
def test_the_other_byte_order(tmp_path: Path, order: bytes) -> None:
    path = _archive(tmp_path / "x.pt", _tensor_program(0, (4,), (1,)), {"0": FLOATS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", order)
    with pytest.raises(GuieError, match="it was written on a big-endian machine"):
        read_checkpoint(path)


def test_a_pickle_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _tensor_program(0, (4,), (1,))
    path = _archive(tmp_path / "x.pt", program, {"0": FLOATS})
    monkeypatch.setattr(checkpoints, "_PICKLE_BYTES", len(program))
    assert len(read_checkpoint(path).tensors) == 1
    monkeypatch.setattr(checkpoints, "_PICKLE_BYTES", len(program) - 1)
    with pytest.raises(GuieError, match=rf"its pickle alone has {len(program)} bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("mmap", [False, True])
def test_mapped_or_not_the_tensors_are_the_same(tmp_path: Path, mmap: bool) -> None:
    content = {str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES} | {"part": torch.randn(40)[3:9]}
    content["empty"] = torch.zeros(0)
    torch.save(content, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    found = read_checkpoint(tmp_path / "x.pt", mmap=mmap).tensors
    for name, value in found.items():
        assert torch.equal(value, content[name]), name
    found["part"].fill_(7)
    assert (tmp_path / "x.pt").read_bytes() == before
    # members at any place, which torch does not write
    path = _archive(tmp_path / "y.pt", _tensor_program(1, (3,), (1,)), {"0": FLOATS})
    assert read_checkpoint(path, mmap=mmap).tensors["x"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("mmap", [False, True])
def test_damaged_numbers_are_noticed(tmp_path: Path, mmap: bool) -> None:
    path = _archive(tmp_path / "x.pt", _tensor_program(0, (4,), (1,)), {"0": FLOATS})
    path.write_bytes(path.read_bytes().replace(FLOATS, FLOATS[:-1] + b"?"))
    with pytest.raises(GuieError, match="Bad CRC-32"):
        read_checkpoint(path, mmap=mmap)


def test_taking_tensors_by_a_mapping(tmp_path: Path) -> None:
    state = {"neck.0.weight": torch.ones(1), "neck.0.extra.weight": torch.ones(2), "fc.weight": torch.ones(3)}
    torch.save({"state_dict": state}, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    taken = found.take({"state_dict.neck.0.": "norm.", "state_dict.neck.0.extra.": "more."})
    assert {name: len(value) for name, value in taken.items()} == {"norm.weight": 1, "more.weight": 2}
    with pytest.raises(GuieError, match=r"begins with 'state_dict.fcc.'. Did you mean 'state_dict.fc.'"):
        found.take({"state_dict.fcc.": "linear."})
    with pytest.raises(GuieError, match=r"two of its tensors would be named 'x\.weight'"):
        found.take({"state_dict.neck.0.": "x.", "state_dict.fc.": "x."})
