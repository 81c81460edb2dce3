"""Tensors out of other people's checkpoints, of which nothing is executed.

A checkpoint of torch is a pickle, and a pickle is a program. Here its instructions are followed with every name that it
calls for replaced by an inert stand-in: what would have built a Python object builds a record of its name. Tensors are
put together from the archive's own storages. So files that `torch.load(weights_only=True)` refuses, because a config
library or a trainer left objects in them (Lightning, mmengine), give up their tensors and nothing else.
"""

from __future__ import annotations

import io
import math
import mmap as _mmap
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from guie_core import GuieError
from guie_core.wording import did_you_mean, listing

#: Of storages, by the class that the pickle names.
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TUPLE_VALUES = 2**20  # in one tuple, those inside its tuples counted each time they are there
_PLACE_LETTERS = 4096
_BLOCK_BYTES = 2**20
_PICKLE_BYTES = 256 * 2**20  # of the program itself, tensors not counted: real ones have some kB


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    tensors: by their dotted place in it, "state_dict.model.classifier.0.weight". values: plain numbers and texts
    likewise. objects: the Python classes and functions that it calls for, none of which was imported.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    objects: tuple[str, ...] = ()

    def take(self, mapping: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors whose place begins with a key of `mapping`, that beginning replaced by the key's value.

        `{"model.neck.0.": "norm.", "model.neck.1.": "linear."}`; the longest beginning that fits decides. Raises
        GuieError for a key with which no place begins, and where two tensors would get one name.
        """
        found: dict[str, Tensor] = {}
        used: set[str] = set()
        for place, tensor in self.tensors.items():
            for beginning in sorted((b for b in mapping if place.startswith(b)), key=len, reverse=True)[:1]:
                name = mapping[beginning] + place[len(beginning) :]
                if name in found:
                    raise GuieError(f"{self.path}: two of its tensors would be named {name!r}.")
                found[name] = tensor
                used.add(beginning)
        if unused := [beginning for beginning in mapping if beginning not in used]:
            near = did_you_mean(unused[0], {place.rpartition(".")[0] + "." for place in self.tensors})
            raise GuieError(
                f"{self.path}: no tensor's place begins with {unused[0]!r}.{escaped(near)}\nIt holds:"
                f" {listing(map(escaped, self.tensors))}"
            )
        return found


def escaped(text: object) -> str:
    """Text out of a file for a message or a terminal: what isn't printable (which could move the cursor, or turn the
    direction of reading) as an escape sequence of Python's."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in str(text)
    )


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> Checkpoint:
    """Reads a checkpoint of torch (the zip form, which torch.save writes since 1.6) or a safetensors file.

    Tensors are on the CPU; those that share memory in the file share it here. mmap: they stay in the file until they
    are used, which must then not be written to while they live; for those who take a few of many. Raises GuieError
    where the file is missing, truncated, of torch's old form, or not a checkpoint at all.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise GuieError(f"{path}: no such file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return Checkpoint(path, load_file(path))
        except Exception as error:  # safetensors has no common class of errors
            raise GuieError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if not zipfile.is_zipfile(path):
        raise GuieError(
            f"{path} ({path.stat().st_size} bytes) is no checkpoint of torch 1.6 or later: it is no zip archive, or it"
            " was cut short. Fetch it again; a file of an older torch has to be saved anew: torch.save(torch.load(path,"
            " weights_only=True), path)."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            root, objects = _unpickled(archive, mmap)
    except GuieError as error:
        raise GuieError(f"{path}: {escaped(error)}") from error
    except Exception as error:  # what damaged bytes lead to is anything
        reason = escaped(f"{type(error).__name__}: {error}".rstrip(": "))
        raise GuieError(f"{path}: damaged, or no checkpoint of torch: {reason}") from error
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    try:
        for place, value in _flat(root):
            if isinstance(value, Tensor):
                tensors[place] = value
            else:
                values[place] = value
    except GuieError as error:
        raise GuieError(f"{path}: {escaped(error)}") from error
    if not tensors:
        raise GuieError(f"{path}: it holds no tensors. It names {listing(map(escaped, sorted(objects)))}.")
    return Checkpoint(path, tensors, values, tuple(sorted(objects)))


class _Inert:
    """Stands for an object that is not built: takes any arguments, any state, any items, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *arguments: Any, **named: Any) -> _Inert:
        return self

    def __hash__(self) -> int:
        return id(self)

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class _Dict(dict[Any, Any]):
    """An OrderedDict, which keeps no attributes (state dictionaries have their metadata there)."""


@dataclass(frozen=True)
class _Storage:
    data: Tensor  # [n], of the storage's dtype


_Python: Any = pickle._Unpickler  # its instructions are no part of the types that are declared for it


class _Unpickler(_Python):  # type: ignore[misc]
    """Follows a pickle; finds stand-ins for all names, and storages in `archive`.

    Python's own implementation and not the one in C, which a few bytes can make ask for gigabytes (LONG_BINPUT).
    What changes an object on the stack is followed for containers and stand-ins alone: on a tensor or a function here
    it would run their own methods (BUILD: Tensor.__setstate__), past every check of `_tensor`.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_Python.dispatch)

    def __init__(self, program: bytes, archive: zipfile.ZipFile, prefix: str, mmap: bool) -> None:
        super().__init__(io.BytesIO(program))
        self.objects: set[str] = set()
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}
        self._mapped = _map(archive) if mmap else None
        self._weighed: dict[int, tuple[int, Any]] = {}  # by id; the tuple is kept, that no other gets its id

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return _Dict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _tensor if name == "_rebuild_tensor_v2" else _parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        self.objects.add(f"{module}.{name}")
        return type(name, (_Inert,), {})  # a class of its own, since NEWOBJ asks for one

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype):
            raise GuieError(f"storage {key} is of a type that is not read")
        key = str(key)
        if key not in self._storages:
            wanted = int(count) * dtype.itemsize
            member = _member(self._archive, f"{self._prefix}data/{key}")
            if member.file_size != wanted:
                raise GuieError(f"storage {key} has {member.file_size} bytes, not {wanted}")
            self._storages[key] = _Storage(self._values(member, dtype))
        return self._storages[key]

    def _values(self, member: zipfile.ZipInfo, dtype: torch.dtype) -> Tensor:
        """The member's bytes as a tensor [n], checked by the archive's CRC."""
        if member.file_size == 0:
            return torch.empty(0, dtype=dtype)
        data = None if self._mapped is not None else bytearray(member.file_size)
        with self._archive.open(member) as stream:
            done = 0
            while block := stream.read(_BLOCK_BYTES):
                if data is not None:
                    data[done : done + len(block)] = block
                done += len(block)
        if done != member.file_size:
            raise GuieError(f"{member.filename} has {done} bytes, not {member.file_size}")
        if data is not None:
            return torch.frombuffer(data, dtype=dtype)
        assert self._mapped is not None
        start = _start(self._mapped, member)
        if start % dtype.itemsize:  # torch writes at multiples of 64; elsewhere vector instructions may fail
            return torch.frombuffer(bytearray(self._mapped[start : start + done]), dtype=dtype)
        return torch.frombuffer(self._mapped, dtype=dtype, count=done // dtype.itemsize, offset=start)

    def _changed(self, item: Any, kinds: tuple[type, ...]) -> None:
        if not isinstance(item, (_Inert, *kinds)):
            raise GuieError(f"its pickle changes a {type(item).__name__} after it was made, which no checkpoint does")

    def load_build(self) -> None:
        self.stack.pop()  # the state, which nothing here keeps
        self._changed(self.stack[-1], (_Dict,))

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        self._changed(self.stack[-3], (dict,))
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._changed(self.metastack[-1][-1], (dict,))
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_append(self) -> None:
        self._changed(self.stack[-2], (list,))
        super().load_append()

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        self._changed(self.metastack[-1][-1], (list,))
        super().load_appends()

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_additems(self) -> None:
        self._changed(self.metastack[-1][-1], (set,))
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def _weigh(self) -> None:
        """Refuses tuples of tuples that are small in the file, where one can stand for many, and without end when they
        are hashed as a key: Python's own remembers no hash of a tuple."""
        made = self.stack[-1]
        count = sum(self._weighed[id(item)][0] if id(item) in self._weighed else 1 for item in made)
        if count > _TUPLE_VALUES:
            raise GuieError(f"its pickle holds a tuple of {count} values")
        self._weighed[id(made)] = (max(count, 1), made)

    def load_tuple(self) -> None:
        super().load_tuple()
        self._weigh()

    dispatch[pickle.TUPLE[0]] = load_tuple

    def load_tuple1(self) -> None:
        super().load_tuple1()
        self._weigh()

    dispatch[pickle.TUPLE1[0]] = load_tuple1

    def load_tuple2(self) -> None:
        super().load_tuple2()
        self._weigh()

    dispatch[pickle.TUPLE2[0]] = load_tuple2

    def load_tuple3(self) -> None:
        super().load_tuple3()
        self._weigh()

    dispatch[pickle.TUPLE3[0]] = load_tuple3

    def load_frozenset(self) -> None:
        super().load_frozenset()
        self._weigh()

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_bytearray8(self) -> None:
        """Read, and then made: Python's own makes one of any length that is asked for. The other instructions with a
        length read as much as there is, and those with an index keep a dictionary."""
        (length,) = struct.unpack("<Q", self.read(8))
        data = bytearray(self.read(length))
        if len(data) != length:
            raise GuieError(f"its pickle announces {length} bytes, of which {len(data)} are there")
        self.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *ignored: Any) -> Tensor:
    """A tensor [*size] over a storage, which must hold all of it: torch itself doesn't look."""
    if not isinstance(storage, _Storage):
        raise GuieError("a tensor without a storage")
    shape, steps = [int(n) for n in size], [int(n) for n in stride]
    if len(shape) != len(steps) or min([int(offset), *shape, *steps], default=0) < 0:
        raise GuieError(f"a tensor of shape {shape} and strides {steps}")
    last = int(offset) + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if math.prod(shape) and last >= len(storage.data):
        raise GuieError(f"a tensor of shape {shape} reaches beyond its storage of {len(storage.data)} values")
    # a stride of 0 would let a few bytes stand for any amount of memory
    if math.prod(shape) > max(len(storage.data), 1):
        raise GuieError(f"a tensor of shape {shape} over a storage of {len(storage.data)} values")
    return storage.data.as_strided(shape, steps, int(offset))


def _parameter(data: Any, *ignored: Any) -> Any:
    return data


def _unpickled(archive: zipfile.ZipFile, mmap: bool) -> tuple[Any, set[str]]:
    programs = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise GuieError("a zip archive, but not a checkpoint of torch: it has no data.pkl")
    if programs[0].file_size > _PICKLE_BYTES:
        raise GuieError(f"its pickle alone has {programs[0].file_size} bytes, far more than names and shapes need")
    prefix = programs[0].filename.removesuffix("data.pkl")
    byteorder = f"{prefix}byteorder"
    if byteorder in archive.namelist():
        member = _member(archive, byteorder)
        order = archive.read(member) if member.file_size <= 16 else b""
        if order != b"little":
            raise GuieError("it was written on a big-endian machine; save it anew on a little-endian one")
    program = archive.read(_member(archive, programs[0].filename))
    unpickler = _Unpickler(program, archive, prefix, mmap)
    return unpickler.load(), unpickler.objects


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member as torch writes them: stored, and so no larger than the archive."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise GuieError(f"{name} is compressed, which no checkpoint of torch is: a few kB could become any amount")
    return member


def _map(archive: zipfile.ZipFile) -> _mmap.mmap:
    """The whole file, whose pages are read as they are used; what is written to them stays in memory."""
    assert archive.fp is not None
    return _mmap.mmap(archive.fp.fileno(), 0, access=_mmap.ACCESS_COPY)


def _start(mapped: _mmap.mmap, member: zipfile.ZipInfo) -> int:
    """Where the member's bytes begin: its local header's own lengths count, not those of the directory."""
    name, extra = struct.unpack_from("<HH", mapped, member.header_offset + 26)
    start: int = member.header_offset + 30 + name + extra
    if start + member.file_size > len(mapped):
        raise GuieError(f"{member.filename} reaches beyond the file")
    return start


def _flat(root: Any) -> Iterator[tuple[str, Any]]:
    """(dotted place, tensor or plain value) of everything in nested dictionaries, lists and tuples."""
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [("", root)]
    while pending:
        place, value = pending.pop()
        if len(place) > _PLACE_LETTERS:  # a key may be there once, and stand in any number of places
            raise GuieError(f"a place in it, {place[:40]}..., has {len(place)} letters")
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:  # once: a pickle can refer to itself, and to one list a million times
                continue
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [(f"{place}.{key}" if place else str(key), item) for key, item in reversed(list(items))]
        elif isinstance(value, Tensor | int | float | str | bool):
            yield place, value
