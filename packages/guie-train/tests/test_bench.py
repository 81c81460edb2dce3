"""Measuring: counted work over measured time, memory above the start, files, and the words of a comparison."""

from __future__ import annotations

import errno
import functools
import io
import itertools
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guie_core import GuieError, Interrupted, UsageError
from guie_core.cli import main
from guie_core.profiles import CPU
from guie_datasets import ImageRef
from guie_train.bench import PARTS, parts, running
from guie_train.bench import machine as machine_
from guie_train.bench.machine import Machine
from guie_train.bench.memory import Memory, peak
from guie_train.bench.meter import Meter, Rate
from guie_train.bench.results import Bench, Part, is_bench, partial_of
from guie_train.bench.words import comparison, report

MACHINE = Machine("Abacus 3000", 2, 8, 16_000_000_000, [], "Linux-6.1", 0.1)
SMALL = parts.Sizes(rows=512, features=12, classes=7, queries=30, index=50, dimension=8, k=3)


def clock(*times: float) -> Callable[[], float]:
    """Tells these times, one after the other."""
    return functools.partial(next, iter(times))


def part(*rates: float, unit: str = "image", machine: int | None = 1_000_000, **work: Any) -> Part:
    median, least, most = rates
    settings = {"device": "cpu", "threads": 2}
    return Part(unit, Rate(median, least, most, 8), Memory(machine), {"size": 224, **work}, settings)


def made(**found: Part) -> Bench:
    return Bench("2026-01-02T03:04:05+00:00", MACHINE, {"torch": "2.7.0"}, "cpu", found)


# --- rates


def test_a_rate_is_units_over_seconds_of_each_round() -> None:
    meter = Meter(8, clock=clock(100, 101, 102.5, 103.5, 110))
    assert [meter(count) for count in (99, 10, 30, 4, 13)] == [False, False, False, False, True]
    # the first report starts the clock; then 10 in 1 s, 30 in 1.5 s, 4 in 1 s, 13 in 6.5 s
    assert meter.rate == Rate(median=7.0, least=2.0, most=20.0, rounds=4)


def test_a_round_lasts_an_eighth_of_the_time_or_more() -> None:
    meter = Meter(8, clock=clock(0, 0.25, 0.5, 0.75, 1.25, 2.25))
    for count in (1, 1, 2, 3, 4, 10):
        meter(count)
    assert meter.rate == Rate(median=9.0, least=8.0, most=10.0, rounds=2)  # 10 units in 1.25 s, 10 in 1 s


def test_what_is_done_while_it_is_warming_up_is_not_counted() -> None:
    meter = Meter(1, warm=5, clock=clock(0, 1, 50, 51))
    for count in (3, 2, 1, 7):
        meter(count)
    assert meter.rate == Rate(7.0, 7.0, 7.0, 1)


def test_three_rounds_at_least() -> None:
    meter = Meter(1, clock=clock(0, 30, 60, 90))
    assert [meter(60) for _ in range(4)] == [False, False, False, True]
    assert meter.rate == Rate(2.0, 2.0, 2.0, 3)


def test_a_clock_that_stands_still_divides_by_nothing() -> None:
    meter = Meter(1, clock=clock(5, 5, 5, 7))
    for _ in range(4):
        meter(1)
    assert meter.rate == Rate(1.5, 1.5, 1.5, 1)


@pytest.fixture
def task(tmp_path: Path) -> parts.Task:
    """Work of toy size, for a profile whose micro-batch is 4."""
    refs = []
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        refs.append(ImageRef(str(tmp_path / f"{number}.png")))
    profile = replace(CPU, batch={"features": 4})
    backbone = {"type": "timm/test_vit", "image_size": 32}
    return parts.Task(profile, backbone, refs, {"images": "3 PNGs"}, 8.0, SMALL)


# an image, a batch, a batch, a step and a search take a second of a clock that goes on by one whenever it is asked
@pytest.mark.parametrize(
    ("name", "rate"), {"decode": 1, "backbone": 4, "extraction": 4, "head": 1, "search": 30}.items()
)
def test_parts_count_what_they_do(name: str, rate: float, task: parts.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count().__next__
    monkeypatch.setattr(parts, "Meter", functools.partial(Meter, clock=ticks))
    found = parts.measure(name, task)
    assert found.rate == Rate(rate, rate, rate, 8)
    assert found.unit == {"head": "step", "search": "query"}.get(name, "image")
    assert found.memory.machine is not None
    assert found.memory.device is None
    assert Part.from_dict(json.loads(json.dumps(asdict(found)))) == found


def test_every_part_can_be_measured() -> None:
    assert tuple(parts._MEASURES) == PARTS


def test_operations_of_a_backbone_are_those_of_its_layers(task: parts.Task) -> None:
    build = parts._backbone_of(task)
    network: Any = build().network
    tokens, width = network.pos_embed.shape[1], network.embed_dim
    expected = 2 * (tokens - network.num_prefix_tokens) * network.patch_embed.proj.weight.numel()
    for block in network.blocks:
        linear = [layer.weight.numel() for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
        expected += 2 * tokens * sum(linear) + 2 * 2 * tokens * tokens * width  # scores, and the sum of values
    assert parts._flops(build) == {"flops_per_image": expected}


# --- memory


def test_memory_is_the_peak_above_the_start() -> None:
    before = np.ones(20_000_000)  # 160 MB, gone before the block begins
    del before
    with peak() as found:
        inside = np.ones(5_000_000)
        del inside
        after = np.ones(1_000_000)
    assert after.any()
    assert found.memory.machine is not None
    assert 38e6 < found.memory.machine < 60e6


def test_memory_of_a_gpu_is_what_torch_allocates_above_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    with peak(torch.device("cuda")) as found:
        assert asked == [torch.device("cuda")]
    assert found.memory.device == 250


def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that were only launched aren't done; and to wait after each would slow them down."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(device.type))

    def meter(count: int) -> bool:
        calls.append(count)
        return len(calls) == 6

    fit: Any = SimpleNamespace(epoch=0, step=0, steps=10)
    enough = parts._Enough(fit, meter, torch.device("cuda"))  # type: ignore[arg-type]
    done = 0
    while not enough:
        done += 1
        fit.epoch, fit.step = divmod(done, fit.steps)
    assert done == 3 * parts.STEPS_ON_GPU
    assert calls == ["cuda", parts.STEPS_ON_GPU] * 3


# --- the machine


def stat(user: int, idle: int, waiting: int, guests: int = 0) -> str:
    """/proc/stat, by the order that proc(5) gives: user, nice, system, idle, iowait, irq, softirq, steal, guest, ..."""
    return f"cpu  {user} 0 0 {idle} {waiting} 0 0 0 {guests} 0\ncpu0 7 7 7 7 7 7 7 7 7 7\nctxt 12\n"


@pytest.mark.parametrize(
    ("before", "after", "own", "load"),
    [
        (stat(1000, 50, 9), stat(1000, 450, 9), 0.0, 0.0),  # whatever was before
        (stat(0, 0, 0), stat(300, 100, 0), 0.0, 6.0),  # three quarters of eight cores
        (stat(0, 0, 0), stat(100, 200, 100, guests=100), 0.0, 2.0),  # a guest is a user as well
        (stat(0, 0, 0), stat(100, 300, 0), 0.25, 1.5),  # half a core was this process
        (stat(0, 0, 0), stat(1, 399, 0), 0.25, 0.0),
        (stat(9, 9, 9), stat(9, 9, 9), 0.0, None),  # a system that counts nothing
        ("", "", 0.0, None),
    ],
)
def test_the_load_is_what_others_keep_at_work(
    before: str, after: str, own: float, load: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stat"
    path.write_text(before)
    monkeypatch.setattr(machine_, "_STAT", path)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("time.process_time", functools.partial(next, iter([3.0, 3.0 + own])))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        path.write_text(after)

    monkeypatch.setattr("time.sleep", sleep)
    assert machine_.this_machine().busy_cores == load
    assert slept == [0.5]


def test_a_machine_that_does_not_tell_its_load_is_not_called_busy(tmp_path: Path) -> None:
    bench = replace(made(decode=part(3.0, 2.0, 4.0)), machine=replace(MACHINE, busy_cores=None))
    bench.write(tmp_path / "bench.json")
    assert Bench.read(tmp_path / "bench.json") == bench
    assert "busy" not in report(bench)


# --- files


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert not is_bench(path)
    bench = made(search=part(1.0, 0.5, 2.0, unit="query"), decode=part(3.0, 2.0, 4.0, machine=None))
    bench.write(path)
    assert Bench.read(path) == bench
    assert is_bench(path)
    # in the order of PARTS, whatever that of the file
    assert list(Bench.read(path).parts) == ["decode", "search"]
    path.write_text("{}")
    assert not is_bench(path)


def _changed(**changes: Any) -> str:
    values = {"format": "guie bench", "schema": 1} | asdict(made(decode=part(3.0, 2.0, 4.0)))
    for key, value in changes.items():
        *where, last = key.split("__")
        functools.reduce(lambda inner, name: inner[name], where, values)[last] = value
    return json.dumps(values)


DAMAGED = {
    "": "is damaged, or was not written by guie bench",
    "[" * 100_000: "is damaged, or was not written by guie bench",
    _changed()[:-30]: "is damaged, or was not written by guie bench",
    "[1]": "was not written by guie bench",
    '{"format": "other"}': "was not written by guie bench",
    _changed(schema=2): "is of format 2; this guie knows format 1",
    _changed(parts=7): "is damaged (TypeError",
    _changed(made="yesterday\x1b[31m"): "is damaged (ValueError",
    _changed(machine__busy_cores="much"): "is damaged (ValueError",
    _changed(parts__decode__unit="\x1b[31m"): "is damaged (ValueError: nothing is counted in '\\x1b[31m'",
    _changed(parts__decode__rate__median=0): "is damaged (ValueError: a rate is a number above 0",
    _changed(parts__decode__rate__most=math.nan): "is damaged (ValueError: a rate is a number above 0",
    _changed(parts__decode__rate={"median": 1}): "is damaged (TypeError",
    _changed(parts__decode__memory__machine=-1): "is damaged (ValueError: memory is a number of bytes",
    _changed(parts__decode__memory__machine="1 GB"): "is damaged (TypeError",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_file_that_cannot_be_used_is_told(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made(decode=part(3.0, 2.0, 4.0)).write(Path("a.json"))
    Path("b.json").write_text(text)
    code, out, err = guie(capsys, "compare", "a.json", "b.json")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: b.json {DAMAGED[text]}")
    assert "\x1b" not in err


def test_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert guie(capsys, "compare", "a.json", "b.json")[::2] == (
        2,
        "error: a.json cannot be read: No such file or directory\n",
    )
    assert guie(capsys, "compare", "folder", "b.json")[::2] == (2, "error: folder cannot be read: Is a directory\n")
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    assert guie(capsys, "compare", "bytes", "b.json")[2].startswith("error: bytes is damaged, or was not written")


# --- words


def test_a_report() -> None:
    bench = made(
        backbone=part(12.5, 11.0, 13.25, flops_per_image=2_000_000_000), search=part(1500, 1400, 1600, unit="query")
    )
    assert report(replace(bench, machine=replace(MACHINE, busy_cores=3.5, gpus=["H9, 80 GB, driver 1"]))) == (
        "Abacus 3000, 2 of 8 cores, 16.0 GB, H9, 80 GB, driver 1; profile cpu; torch 2.7.0\n"
        "            rate             slowest - fastest  memory\n"
        "  backbone  12.5 images/s    11.0 - 13.2        1.0 MB\n"
        "  search    1,500 queries/s  1,400 - 1,600      1.0 MB\n"
        "  backbone  size 224, cpu, threads 2, 25 GFLOP/s\n"
        "  search    size 224, cpu, threads 2\n"
        "The machine was busy: others kept 3.5 of its 8 cores at work. Measure again when it is quiet."
    )


def test_lines_stay_narrow() -> None:
    machine = replace(
        MACHINE, processor="Abacus(R) Gold(TM) 3000 CPU @ 2.80GHz", gpus=["H9 PCIe 80GB, 80 GB, driver 1.2.3"] * 8
    )
    bench = replace(
        made(backbone=part(12.5, 11.0, 13.25, backbone="a/" + "b" * 40)), machine=replace(machine, busy_cores=9.75)
    )
    other = replace(bench, machine=MACHINE, versions={f"library-{n}": "1.0" for n in range(20)})
    for text in (report(bench), comparison(("a/very/long/path/" + "x" * 60, bench), ("b", other))):
        assert "8 x H9 PCIe 80GB, 80 GB, driver 1.2.3" in " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 100


def test_a_comparison_says_what_is_beyond_the_spread() -> None:
    a = made(
        decode=part(100, 90, 110),
        backbone=part(10, 9, 11),
        extraction=part(10, 9, 11),
        head=part(8, 7, 9, unit="step", machine=None),
        search=part(5, 4, 6, unit="query"),
    )
    b = made(
        decode=part(120.5, 110, 130),
        backbone=replace(part(20, 11.5, 25), memory=Memory(1_500_000, 3_000_000)),
        extraction=replace(part(5, 3, 8.9), settings={"device": "cpu", "threads": 8}),
        head=part(8, 7, 9, unit="step", size=448),
    )
    assert comparison(("a.json", a), ("b.json", b)) == (
        "A is a.json, of 2026-01-02T03:04:05+00:00\n"
        "B is b.json, of 2026-01-02T03:04:05+00:00\n"
        "                A               B               B / A\n"
        "  decode        100.0 images/s  120.5 images/s  1.21   no difference beyond the spread\n"
        "    memory      1.0 MB          1.0 MB          1.00\n"
        "  backbone      10.0 images/s   20.0 images/s   2.00   B is faster, beyond the spread\n"
        "    memory      1.0 MB          1.5 MB          1.50\n"
        "    GPU memory  -               3.0 MB\n"
        "  extraction    10.0 images/s   5.00 images/s   0.50   B is slower, beyond the spread; other\n"
        "                                                       settings: threads 2 in A, 8 in B\n"
        "    memory      1.0 MB          1.0 MB          1.00\n"
        "  head          8.00 steps/s    8.00 steps/s           not compared, since the work differs: size\n"
        "                                                       224 in A, 448 in B\n"
        "  search        5.00 queries/s  -                      only in A\n"
        "Machine, versions and profile are the same."
    )


def test_a_comparison_says_what_differs_around_it() -> None:
    a = made(decode=part(100, 90, 110))
    other = replace(MACHINE, cores=4, gpus=["H9, 80 GB, driver 1"], busy_cores=1.5)
    b = replace(a, machine=other, versions={"torch": "2.8.0", "timm": "1.0"}, profile="h100-80g")
    *_, machine, versions, profile, busy = comparison(("a", a), ("b", b)).splitlines()
    assert machine == "  machine   cores 8 in A, 4 in B; gpus missing in A, H9, 80 GB, driver 1 in B"
    assert versions == "  versions  torch 2.7.0 in A, 2.8.0 in B; timm missing in A, 1.0 in B"
    assert profile == "  profile   cpu in A, h100-80g in B"
    assert busy == "B was measured on a busy machine, which explains much: others kept 1.5 of its 4 cores at work."


# --- the command


def guie(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, and what was printed."""
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *args])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the command asks for; every part is answered at once."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def answer(name: str, task: dict[str, Any], folder: Path) -> Part:
        asked.append((name, task | {"readable": [Path(image[0]).read_bytes()[:3] for image in task["images"]]}))
        return part(3.0, 2.0, 4.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine_, "_busy_cores", lambda: 0.0)
    monkeypatch.setattr(running, "in_a_process", answer)
    return asked


def test_parts_are_measured_in_their_order_and_written(
    measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = guie(capsys, "--only", "search, head", "--profile", "t4-16g", "--seconds", "2", "--out", "x.json")
    assert code == 0
    assert out.endswith("Wrote x.json.\n")
    assert [name for name, _ in measured] == ["head", "search"]
    task = measured[0][1]
    assert task["profile"] == {"type": "t4-16g", "dtype": "float16"}
    assert (task["seconds"], task["images"]) == (2.0, [])
    bench = Bench.read(Path("x.json"))
    assert list(bench.parts) == ["head", "search"]
    assert bench.profile == "t4-16g"
    assert bench.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert bench.machine.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert max(map(len, out.splitlines())) <= 100


def test_images_are_made_up_or_given(
    measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PHOTOS", 2)
    monkeypatch.setattr(running, "MOST_IMAGES", 3)
    assert guie(capsys, "--only", "decode")[0] == 0
    assert measured[-1][1]["readable"] == [b"\xff\xd8\xff"] * 2  # of JPEGs, there while it is measured
    assert not any(Path(image[0]).exists() for image in measured[-1][1]["images"])
    assert measured[-1][1]["images_told"] == {"images": "2 made-up JPEGs of 1024 x 768"}

    Path("own").mkdir()
    for number in range(4):
        Path(f"own/{number}.png").write_bytes(b"\x89PNG" + bytes([number]))
    told = []
    for content in (b"a", b"b"):
        Path("own/1.png").write_bytes(content)
        assert guie(capsys, "--only", "decode", "--images", "own")[0] == 0
        told.append(measured[-1][1]["images_told"])
    assert [Path(image[0]).name for image in measured[-1][1]["images"]] == ["0.png", "1.png", "2.png"]
    assert [each["images"] for each in told] == ["3 images of own"] * 2
    assert told[0]["digest"] != told[1]["digest"]


WRONG = {
    ("--only", "decode,serch"): "'serch' is no part; they are decode, backbone, extraction, head, search",
    ("--profile", "cpux"): "--profile: 'cpux' is not among the profiles. Did you mean cpu (guie-core 0.1.0)?",
    ("--profile", "cpu", "--dtype", "float16"): "--profile: float16 is for GPUs: use float32 or bfloat16 on the CPU",
    ("--backbone", "tim/x"): "'tim/x' is not among the backbones",
    ("--images", "nothing-here"): "'nothing-here' is neither a data set nor a file or folder here",
    ("--images", "empty"): "--images empty: there is no image in it",
    ("--seconds", "0"): "is not in the range",
    ("--out", "bench.txt"): "--output bench.txt: it must end in .json",
    ("--out", "/proc/x.json"): "No such file or directory: /proc/x.json could not be written.\n",
    ("--out", "/proc/new/x.json"): "No such file or directory: /proc/new/x.json could not be written.\n",
    ("--out", "other.json/new/x.json"): "--output other.json/new/x.json cannot be written: other.json is a file.",
    ("--out", "other.json"): "other.json is there already, and was not made by this command",
    ("--profile", "cpu", "compare", "a.json", "b.json"): "guie bench compare measures nothing: leave out --profile\n",
    ("compar",): "No such command 'compar'",
}


@pytest.mark.parametrize(
    ("number", "told", "advice"),
    [
        (errno.ENOSPC, "The disk is full: new/x.json", "Make room, or choose a folder on another disk, and"),
        (errno.EACCES, "Permission is denied: new/x.json", "Make {here} writable, or choose another folder, and"),
    ],
)
def test_where_nothing_can_be_written_it_is_told_why_before_anything_is_measured(
    measured: list[tuple[str, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    told: str,
    advice: str,
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", fails)
    code, out, err = guie(capsys, "--out", "new/x.json")
    assert (code, out, measured) == (2, "", [])
    assert f"{told} could not be written." in err
    assert (
        f"{advice.format(here=Path.cwd())} run the same command again. --output sets the file's folder and name" in err
    )


def test_a_name_that_is_too_long_for_what_is_beside_it_is_refused(
    measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * (255 - len("..partial.json.12345678.tmp") + 1)  # by one byte
    code, out, err = guie(capsys, "--out", f"{name}.json")
    assert (code, out, measured) == (2, "", [])
    assert f"The name is too long: {name}.json could not be written." in err
    assert "writable" not in err
    assert "--output sets the file's folder and name" in err
    assert guie(capsys, "--out", f"{name[1:]}.json", "--only", "search")[0] == 0


@pytest.mark.parametrize("args", WRONG)
def test_mistakes_are_told_before_anything_is_measured(
    args: tuple[str, ...], measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("other.json").write_text("{}")
    code, out, err = guie(capsys, *args)
    assert (code, out) == (2, "")
    assert WRONG[args] in err
    assert measured == []
    assert Path("other.json").read_text() == "{}"


def test_its_own_file_is_replaced_and_others_by_force(
    measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    made(search=part(1.0, 1.0, 1.0)).write(Path("bench.json"))
    assert guie(capsys, "--only", "search")[0] == 0
    assert Bench.read(Path("bench.json")).parts["search"].rate.median == 3.0
    Path("bench.json").write_text("[]")
    assert guie(capsys, "--only", "head", "--force")[0] == 0
    assert list(Bench.read(Path("bench.json")).parts) == ["head"]


def test_a_part_that_fails_is_told(tmp_path: Path) -> None:
    """In the process's own words, if they are for people; else with what it said last."""
    dies = tmp_path / "dies.py"
    dies.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    leaves = tmp_path / "leaves.py"
    leaves.write_text("import os, sys\nprint('the roof is on fire', file=sys.stderr, flush=True)\nos._exit(3)\n")
    for plugin, message in {
        "missing.py": "search: --plugin missing.py: there is no such file.",
        str(
            dies
        ): "search: the process that was measuring it was ended by signal SIGKILL. Most often that means that the "
        "memory was full. --only measures the parts without search",
        str(leaves): "search: the process that was measuring it failed: the roof is on fire\n"
        "--only measures the parts without search",
    }.items():
        with pytest.raises(GuieError) as error:
            running.in_a_process("search", {"plugins": [plugin]}, tmp_path)
        assert str(error.value) == message
        assert isinstance(error.value, UsageError) == (plugin == "missing.py")


def test_a_full_disk_is_told_with_the_file_and_what_chooses_another(
    measured: list[tuple[str, dict[str, Any]]],
    small_files: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # the limit stands for what a file system takes
    monkeypatch.setattr("resource.getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    code, out, err = guie(capsys, "--only", "decode")
    assert (code, out) == (1, "")
    where = rf"{tmp_path}/guie-bench-\w+"
    assert re.search(rf"^error: .*: {where}/0\.jpg could not be written\.$", err, re.MULTILINE)
    assert "Choose a folder on a disk whose file system takes larger files (TMPDIR)," in err

    code, out, err = guie(capsys, "--only", "search", "--backbone", f"timm/{'x' * 2000}", "--out", "own.json")
    assert (code, out) == (1, "")
    assert re.search(r"^error: .*: own\.json could not be written\.$", err, re.MULTILINE)
    assert "Choose a folder on a disk whose file system takes larger files (--output)," in err

    question = tmp_path / "task.json"
    question.write_text(json.dumps({"plugins": ["missing.py"]}))
    command = [sys.executable, "-m", "guie_train.bench", str(question), "/dev/full"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("The disk is full: /dev/full could not be written.")
    assert done.stderr.count("\n") == 1


def test_plugins_of_the_command_line_are_there_where_it_is_measured(task: parts.Task, tmp_path: Path) -> None:
    plugin, loaded = tmp_path / "own.py", tmp_path / "loaded"
    plugin.write_text(
        "import os\nfrom guie_core import Entry, hookimpl\n"
        f"with open({str(loaded)!r}, 'a') as file: print(os.getpid(), file=file)\n"
        "@hookimpl\ndef guie_backbones(): return [Entry('own', 'own:Own', 'One of my own')]\n"
    )
    command = [sys.executable, "-m", "guie_core.cli", "--plugin", "own.py", "bench", "--backbone", "own"]
    command += ["--only", "decode", "--seconds", "0.1", "--images", "."]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    assert len(set(loaded.read_text().split())) == 2


def _children(pid: int, what: str) -> list[str]:
    """The processes that a process has started and that say `what` on their command line."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in children if what in Path(f"/proc/{child}/cmdline").read_text()]
    except OSError:  # one has ended meanwhile
        return []


@pytest.fixture
def stopped_at(
    measured: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, GuieError | None], None]:
    """Has measuring a part end in an error, or none any more."""
    answer = running.in_a_process

    def at(name: str, error: GuieError | None) -> None:
        def measure(asked: str, task: dict[str, Any], folder: Path) -> Part:
            if asked == name and error is not None:
                raise error
            return answer(asked, task, folder)

        monkeypatch.setattr(running, "in_a_process", measure)

    return at


def test_a_measurement_that_was_stopped_goes_on(
    measured: list[tuple[str, dict[str, Any]]],
    stopped_at: Callable[[str, GuieError | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_at("head", Interrupted("head is not measured"))
    code, out, err = guie(capsys, "--profile", "cpu", "--resume")  # nothing is there to go on with
    assert (code, out) == (130, "")
    assert err.splitlines()[-2:] == [
        "stopped: head is not measured",
        "bench.partial.json has decode, backbone, extraction. The same command with --resume measures head, search",
    ]
    assert not Path("bench.json").exists()
    partial = partial_of(Path("bench.json"))
    bench = Bench.read(partial)
    assert (list(bench.parts), bench.missing) == (["decode", "backbone", "extraction"], ("head", "search"))
    assert json.loads(partial.read_text())["missing"] == ["head", "search"]
    code, out, _ = guie(capsys, "compare", "bench.partial.json", "bench.partial.json")
    assert code == 0
    assert " ".join(out.split()).count(", which was stopped before head, search") == 2
    assert not re.search("^(head|search) ", out, re.MULTILINE)

    stopped_at("head", None)
    before = partial.read_text()
    code, _, err = guie(capsys, "--profile", "cpu", "--resume", "--seconds", "9")
    assert code == 2
    assert "it was begun with other options" in err
    assert partial.read_text() == before
    measured.clear()
    assert guie(capsys, "--profile", "cpu", "--resume")[0] == 0
    assert [name for name, _ in measured] == ["head", "search"]
    assert not partial.exists()
    done = Bench.read(Path("bench.json"))
    assert (tuple(done.parts), done.missing, done.made) == (PARTS, (), bench.made)
    assert guie(capsys, "--profile", "cpu", "--resume")[1].endswith("bench.json lacks nothing.\n")
    assert len(measured) == 2


def test_what_was_complete_stays_until_what_replaces_it_is(
    stopped_at: Callable[[str, GuieError | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guie(capsys, "--profile", "cpu")[0] == 0
    done = Bench.read(Path("bench.json"))
    stopped_at("decode", Interrupted("decode is not measured"))
    assert guie(capsys, "--profile", "cpu")[2].splitlines()[-1] == "stopped: nothing new was written"
    for error in (GuieError("head: the roof is on fire"), Interrupted("head is not measured")):
        stopped_at("head", error)
        code, _, err = guie(capsys, "--profile", "cpu")
        assert (code, err.splitlines()[-1].startswith("bench.partial.json has decode, ")) == (error.exit_code, True)
        assert "; bench.json is as it was. The same command with --resume measures head, search" in err
        assert Bench.read(Path("bench.json")) == done
    assert "bench.partial.json was stopped, and is begun anew; --resume goes on with it.\n" in err
    stopped_at("head", None)
    assert guie(capsys, "--profile", "cpu", "--resume")[0] == 0
    assert Bench.read(Path("bench.json")).missing == ()
    assert [path.name for path in Path().glob("*.json")] == ["bench.json"]

    Path("bench.partial.json").write_text("{}")
    code, _, err = guie(capsys, "--profile", "cpu")
    assert (code, "bench.partial.json, which goes with bench.json, is there already, and was not made by" in err) == (
        2,
        True,
    )


def test_only_what_is_asked_for_is_measured(
    measured: list[tuple[str, dict[str, Any]]],
    stopped_at: Callable[[str, GuieError | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped_at("backbone", GuieError("backbone: the roof is on fire"))
    assert guie(capsys, "--profile", "cpu")[0] == 1
    measured.clear()
    assert guie(capsys, "--profile", "cpu", "--resume", "--only", "search")[0] == 0
    assert [name for name, _ in measured] == ["search"]
    found = Bench.read(Path("bench.json"))
    assert (list(found.parts), found.missing) == (["decode", "search"], ())
    assert guie(capsys, "--profile", "cpu", "--resume", "--only", "head")[0] == 0  # which is added
    assert list(Bench.read(Path("bench.json")).parts) == ["decode", "head", "search"]

    Path("bench.json").rename("bench.partial.json")
    assert guie(capsys, "--profile", "cpu", "--resume", "--only", "decode")[1].endswith("Wrote bench.json.\n")
    assert [path.name for path in Path().glob("*.json")] == ["bench.json"]
    assert [name for name, _ in measured] == ["search", "head"]


def test_figures_of_other_images_are_not_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[dict[str, Any]] = []

    def reads(name: str, task: dict[str, Any], folder: Path) -> Part:
        told.append(task["images_told"])
        return part(3.0, 2.0, 4.0, **(task["images_told"] if name in running.READS else {}))

    monkeypatch.setattr(running, "in_a_process", reads)
    Path("own").mkdir()
    image = Path("own/0.png")
    image.write_bytes(b"\x89PNG")
    asked = ("--profile", "cpu", "--images", "own", "--resume", "--only")
    assert guie(capsys, *asked, "decode")[0] == 0
    image.write_bytes(b"\x89PNG changed")
    before = Path("bench.json").read_text()
    code, _, err = guie(capsys, *asked, "extraction")
    assert (code, "error: it was begun with other images, so that" in err) == (2, True)
    assert Path("bench.json").read_text() == before
    assert guie(capsys, *asked, "search")[0] == 0  # which reads none
    image.write_bytes(b"\x89PNG")
    assert guie(capsys, *asked, "extraction")[0] == 0
    assert told[0] == told[-1] != {}


def test_a_file_of_before_there_were_unfinished_ones(tmp_path: Path) -> None:
    values = {"format": "guie bench", "schema": 1} | asdict(made(head=part(3.0, 2.0, 4.0)))
    del values["asked"], values["missing"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    assert Bench.read(tmp_path / "old.json") == made(head=part(3.0, 2.0, 4.0))


def test_the_load_average_of_older_files_is_not_taken_for_what_others_did(tmp_path: Path) -> None:
    values = {"format": "guie bench", "schema": 1} | asdict(made(head=part(3.0, 2.0, 4.0)))
    del values["machine"]["busy_cores"]
    values["machine"]["load"] = 96.5  # of the minute before, when another measurement was at work
    (tmp_path / "old.json").write_text(json.dumps(values))
    bench = Bench.read(tmp_path / "old.json")
    assert bench.machine == replace(MACHINE, busy_cores=None)
    assert "busy" not in report(bench)


def test_parts_that_are_not_measured_again_are_lost_with_force_alone(
    measured: list[tuple[str, dict[str, Any]]],
    stopped_at: Callable[[str, GuieError | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guie(capsys, "--profile", "cpu")[0] == 0
    done = Bench.read(Path("bench.json"))
    stopped_at("backbone", Interrupted("backbone is not measured"))
    assert guie(capsys, "--profile", "cpu")[0] == 130
    stopped_at("backbone", None)
    partial = Path("bench.partial.json").read_text()
    measured.clear()
    for asked, lost in {
        ("--resume", "--only", "decode"): "backbone, extraction, head, search",
        ("--resume", "--only", "extraction,head,search"): "backbone",
        ("--only", "search,head"): "decode, backbone, extraction",
    }.items():
        code, _, err = guie(capsys, "--profile", "cpu", *asked)
        assert (code, err.startswith(f"error: bench.json has {lost}, which would be lost. Measure ")) == (2, True)
        assert (Bench.read(Path("bench.json")), Path("bench.partial.json").read_text()) == (done, partial)
    assert not measured
    assert guie(capsys, "--profile", "cpu", "--resume", "--only", "decode", "--force")[1].endswith(
        "Wrote bench.json.\n"
    )
    assert list(Bench.read(Path("bench.json")).parts) == ["decode"]
    assert not Path("bench.partial.json").exists()


def test_a_file_of_a_newer_guie_is_not_replaced(
    measured: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guie(capsys, "--profile", "cpu")[0] == 0
    newer = json.dumps(json.loads(Path("bench.json").read_text()) | {"schema": 1000}, indent=1)
    Path("bench.json").write_text(newer)
    measured.clear()
    code, _, err = guie(capsys, "--profile", "cpu")
    assert code == 2
    assert err.startswith("error: bench.json is of format 1000; this guie knows format ")
    assert err.endswith("Choose another --output, or add --force to replace it\n")
    assert (Path("bench.json").read_text(), measured) == (newer, [])
    assert guie(capsys, "--profile", "cpu", "--force")[0] == 0


def test_ctrl_c_ends_the_process_that_measures_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guie_core.cli", "bench", "--only", "search", "--seconds", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (measuring := _children(process.pid, "guie_train.bench")):
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert (out, err.splitlines()[-1]) == ("", "stopped: nothing new was written")
    assert "Traceback" not in err
    assert not Path(f"/proc/{measuring[0]}").exists()
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, guie_core.cli as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'numpy', 'timm', 'mmengine'} & {name.partition('.')[0] for name in sys.modules}\n"
        "print(*heavy, file=sys.stderr)"
    )
    for args in (["bench", "--help"], ["bench", "compare", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Usage: ")
        assert done.stderr == "\n"


def test_a_real_run_and_its_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: parts.Task
) -> None:
    monkeypatch.chdir(tmp_path)
    measuring = ["--only", "decode", "--seconds", "0.1", "--profile", "cpu", "--images"]
    code, _, err = guie(capsys, *measuring, str(tmp_path), "--out", "a.json")
    assert code == 0, err
    found = Bench.read(Path("a.json")).parts["decode"]
    assert found.settings == {"workers": 2}
    assert found.work["images"] == f"3 images of {tmp_path.name}"
    assert found.memory.machine is not None
    assert found.rate.least <= found.rate.median <= found.rate.most
    assert guie(capsys, "compare", "a.json", "a.json")[1].count("1.00   no difference") == 1

    Path("1.png").write_bytes(Path("1.png").read_bytes()[:99])
    code, out, err = guie(capsys, *measuring, str(tmp_path), "--out", "b.json")
    assert (code, out) == (1, "")
    assert f"error: decode: {tmp_path / '1.png'}: " in err
    assert "guie data prepare makes a manifest of the images that can be used" in err
    assert not Path("b.json").exists()


def test_photos_are_jpegs_that_differ() -> None:
    from guie_datasets.images.photos import photo

    first, again, second = photo(0), photo(0), photo(1)
    assert first == again != second
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (1024, 768), "RGB")
        assert np.asarray(image).std() > 10
