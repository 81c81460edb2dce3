"""Downloads from a server on this machine that breaks off, lies, redirects and hangs.

Kaggle's part is played by a stand-in for its client, and by the client itself with that server for Kaggle.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from guie_core import GuieError, Interrupted
from guie_datasets.fetching import _http, _kaggle
from guie_datasets.fetching.download import Download, HttpArchive, HttpFile, KaggleArchive, fetch

BODY = os.urandom(3_000_000)
KEY = "0123456789abcdef-not-to-be-seen"


class Server(ThreadingHTTPServer):
    """Serves `files` with ETag, Range and If-Range as a good server does; `plan`: what to do instead, once each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, list[Callable[[Handler, bytes], None]]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]

    def handle_error(self, *_: Any) -> None:
        """Connections that the other side gives up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = re.sub(r"^https?://[^/]+", "", self.path)  # as a proxy is asked
        if length := int(self.headers.get("Content-Length", 0)):
            self.rfile.read(length)
        self.server.requests.append((path, dict(self.headers)))
        plan = self.server.plan[path]
        body = self.server.files.get(path, b"")
        if plan:
            plan.pop(0)(self, body)
        elif path not in self.server.files:
            self.status(404)
        else:
            self.serve(body)

    do_POST = do_GET  # noqa: N815

    def status(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def serve(self, body: bytes, stop_after: int | None = None, ranges: bool = True, etag: bool = True) -> None:
        """Serve `body`, or the rest of it; break off after `stop_after` bytes."""
        mark = f'"{hashlib.md5(body).hexdigest()}"'
        begin = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranges and asked and self.headers.get("If-Range", mark) == mark:
            begin = int(asked[1])
            if begin >= len(body):
                self.status(416, Content_Range=f"bytes */{len(body)}")
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if etag:
            self.send_header("ETag", mark)
        if ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        if stop_after is None:
            self.wfile.write(body[begin:])
        else:
            self.wfile.write(body[begin : begin + stop_after])
            self.wfile.flush()
            self.close_connection = True


def breaks_after(count: int, **how: bool) -> Callable[[Handler, bytes], None]:
    return lambda handler, body: handler.serve(body, count, **how)


def answers(code: int, **headers: str) -> Callable[[Handler, bytes], None]:
    return lambda handler, body: handler.status(code, **headers)


def hangs_after(count: int) -> Callable[[Handler, bytes], None]:
    def hang(handler: Handler, body: bytes) -> None:
        handler.serve(body, count)
        handler.server.over.wait(10)

    return hang


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing disks is slow, and none is unplugged here."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Got:
    """Fetches one file, with the waits noted instead of waited."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.path = folder / "file.bin"
        self.waits: list[float] = []

    def fetch(self, **options: Any) -> bytes:
        _http.fetch(self.server.url("/file.bin"), self.path, sleep=self.waits.append, **options)
        assert self.left() == ["file.bin"]
        return self.path.read_bytes()

    def fails(self, kind: type[GuieError] = GuieError, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            self.fetch(**options)
        assert not self.path.exists(), "a file that isn't whole must not be there"
        return str(caught.value)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture
def got(server: Server, tmp_path: Path) -> Got:
    server.files["/file.bin"] = BODY
    return Got(server, tmp_path / "here")


# a file over HTTP


def test_a_file_arrives(got: Got, server: Server) -> None:
    assert got.fetch() == BODY
    assert server.ranges() == [None]
    assert got.waits == []


def test_an_empty_file_arrives(got: Got, server: Server) -> None:
    server.files["/file.bin"] = b""
    assert got.fetch() == b""


def test_what_broke_off_is_gone_on_with_at_once(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000), breaks_after(500_000)]
    assert got.fetch() == BODY
    assert server.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.requests[1][1]["If-Range"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    assert sum(got.waits) == 2.0  # one second each: it came on


def test_what_broke_off_is_gone_on_with_by_the_next_run(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000), *[answers(503)] * 9]
    text = got.fails(_http.Unreachable)
    assert "answers 503" in text
    assert "5 times in a row" in text
    assert "1.0 MB have arrived and are kept" in text
    assert got.left() == ["file.bin.part", "file.bin.part.json"]
    server.plan.clear()
    server.requests.clear()
    assert got.fetch() == BODY
    assert server.ranges() == ["bytes=1000000-"]


def test_a_file_that_changed_in_between_is_fetched_anew(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000)]
    server.plan["/file.bin"] += [answers(503)] * 9
    got.fails()
    server.plan.clear()
    server.files["/file.bin"] = other = os.urandom(2_000_000)
    assert got.fetch() == other
    assert server.ranges()[-1] == "bytes=1000000-"


def test_a_server_that_goes_on_with_another_version_is_not_believed(got: Got, server: Server) -> None:
    other = os.urandom(len(BODY))

    def goes_on(handler: Handler, body: bytes) -> None:
        del handler.headers["If-Range"]
        handler.serve(other)

    server.plan["/file.bin"] = [breaks_after(1_000_000), goes_on]
    server.files["/file.bin"] = BODY
    assert got.fetch() == BODY
    assert server.ranges() == [None, "bytes=1000000-", None]


def test_a_server_that_knows_no_ranges(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000), breaks_after(2_000_000, ranges=False)]
    server.plan["/file.bin"] += [lambda handler, body: handler.serve(body, ranges=False)]
    assert got.fetch() == BODY
    assert server.ranges() == [None, "bytes=1000000-", "bytes=2000000-"]


def test_without_a_mark_of_the_version_it_starts_over(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000, etag=False)]
    assert got.fetch() == BODY
    assert server.ranges() == [None, None]


def test_a_weak_mark_is_none(got: Got, server: Server) -> None:
    def weak(handler: Handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("ETag", 'W/"1"')
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:1000])
        handler.close_connection = True

    server.plan["/file.bin"] = [weak]
    assert got.fetch() == BODY
    assert server.ranges() == [None, None]


def test_more_than_there_is(got: Got, server: Server) -> None:
    """What is here is longer than what the server has, under the same mark."""
    server.plan["/file.bin"] = [breaks_after(1_000_000), answers(416, Content_Range="bytes */10")]
    assert got.fetch() == BODY
    assert server.ranges() == [None, "bytes=1000000-", None]


def test_a_part_from_the_beginning_replaces_what_is_there(got: Got, server: Server) -> None:
    """Some servers answer every request as one for a part."""

    def whole_as_part(handler: Handler, body: bytes) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        handler.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.plan["/file.bin"] = [breaks_after(1_000_000), answers(416), whole_as_part]
    assert got.fetch() == BODY
    assert server.ranges() == [None, "bytes=1000000-", None]


@pytest.mark.parametrize("stop_after", [None, 1_000_000])
def test_what_arrived_is_on_the_disk(
    stop_after: int | None, got: Got, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as can be tested without cutting the power: the part is flushed with all that it holds."""
    flushed: dict[int, int] = {}  # inode -> bytes
    fsync = os.fsync

    def noted(file: int) -> None:
        fsync(file)
        about = os.fstat(file)
        flushed[about.st_ino] = about.st_size

    monkeypatch.setattr(os, "fsync", noted)
    if stop_after:
        server.plan["/file.bin"] = [breaks_after(stop_after), *[answers(404)] * 9]
        got.fails()
    else:
        got.fetch()
    about = (got.path.with_name("file.bin.part") if stop_after else got.path).stat()
    assert flushed[about.st_ino] == about.st_size == (stop_after or len(BODY))


def test_a_whole_part_is_not_fetched_again(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000), *[answers(503)] * 9]
    got.fails()
    with open(got.path.with_name("file.bin.part"), "ab") as part:  # killed just before it was renamed
        part.write(BODY[1_000_000:])
    server.requests.clear()
    assert got.fetch() == BODY
    assert server.requests == []


def test_the_part_of_another_address_is_not_gone_on_with(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [breaks_after(1_000_000), *[answers(503)] * 9]
    got.fails()
    state = got.path.with_name("file.bin.part.json")
    state.write_text(state.read_text().replace("/file.bin", "/other.bin"))
    server.plan.clear()
    assert got.fetch() == BODY
    assert server.ranges()[-1] is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 1, "no": 2}', "\0"])
def test_a_damaged_note_beside_a_part(text: str, got: Got, server: Server) -> None:
    got.path.parent.mkdir()
    got.path.with_name("file.bin.part").write_bytes(b"junk")
    got.path.with_name("file.bin.part.json").write_text(text)
    assert got.fetch() == BODY


def test_without_a_length(got: Got, server: Server) -> None:
    def chunked(handler: Handler, body: bytes, whole: bool = True) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"")
        handler.close_connection = True

    server.plan["/file.bin"] = [lambda handler, body: chunked(handler, body, whole=False), chunked]
    assert got.fetch() == BODY
    assert server.ranges() == [None, None]


def test_redirects_are_followed(got: Got, server: Server) -> None:
    server.files["/moved"] = BODY
    server.plan["/file.bin"] = [answers(302, Location="/moved")] * 2
    server.plan["/moved"] = [breaks_after(1_000_000)]
    assert got.fetch() == BODY
    assert [path for path, _ in server.requests] == ["/file.bin", "/moved"] * 2
    assert server.ranges()[-1] == "bytes=1000000-"


def test_redirects_in_a_circle(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [answers(302, Location="/file.bin")] * 50
    assert "302" in got.fails(_http.Unreachable)


@pytest.mark.parametrize("target", ["ftp://example.org/file.bin", "file:///etc/passwd"])
def test_redirects_to_other_kinds_of_addresses(target: str, got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [answers(302, Location=target)]
    got.fails()
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["http://[bad/", "ftp://h:abc/x", "http://h:abc/x"])
def test_redirects_to_what_is_no_address(target: str, code: int, got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [answers(code, Location=target)]
    assert "/file.bin redirects to what is no address" in got.fails()
    assert len(server.requests) == 1


def test_redirects_from_encrypted_to_open(got: Got) -> None:
    request = urllib.request.Request("https://example.org/a")
    follow = _http._Redirects().redirect_request
    with pytest.raises(GuieError, match=r"https://example.org/a redirects to http://example.org/b, which is less safe"):
        follow(request, None, 302, "", {}, "http://example.org/b?token=secret")
    followed = follow(request, None, 302, "", {}, "https://other.org/b")
    assert followed
    assert followed.full_url == "https://other.org/b"


@pytest.mark.parametrize(
    ("code", "words"),
    [(404, "not there any more"), (403, "refuses"), (401, "login"), (500, "answers 500"), (418, "418")],
)
def test_answers_that_are_no_file(code: int, words: str, got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [answers(code)] * 9
    text = got.fails(_http.Unreachable)
    assert words in text
    assert server.url("/file.bin") in text
    assert len(server.requests) == (5 if code == 500 else 1)


def test_waits_grow_and_follow_the_server(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [
        answers(503),
        answers(429, Retry_After="7"),
        answers(503, Retry_After="1000000"),
        answers(502),
    ]
    assert got.fetch() == BODY
    assert sum(got.waits) == 1 + 7 + _http.LONGEST_WAIT + 8


def test_a_server_that_falls_silent(got: Got, server: Server) -> None:
    server.plan["/file.bin"] = [hangs_after(1_000_000)]
    assert got.fetch(timeout=0.1) == BODY
    assert server.ranges() == [None, "bytes=1000000-"]
    got.path.unlink()
    server.plan["/file.bin"] = [lambda handler, body: handler.server.over.wait(10) and None] * 9
    assert "sends nothing more, 5 times in a row" in got.fails(timeout=0.02)


def test_a_server_that_is_away(got: Got, server: Server) -> None:
    closed = Server()
    address = closed.url("/file.bin")
    closed.server_close()
    with pytest.raises(_http.Unreachable, match=r"refused.*5 times in a row"):
        _http.fetch(address, got.path, sleep=got.waits.append)
    with pytest.raises(_http.Unreachable, match="there is no network, or no such server"):
        _http.fetch("http://no-such-host.invalid/file.bin", got.path, sleep=got.waits.append)


def ends_early(handler: Handler, body: bytes) -> None:
    """Without a length, by which it would show."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body[:5])
    handler.close_connection = True


def test_a_size_other_than_expected(got: Got, server: Server) -> None:
    assert got.fetch(expected=len(BODY)) == BODY
    got.path.unlink()
    assert "3,000,000 bytes, not 5" in got.fails(expected=5)
    server.plan["/file.bin"] = [ends_early]
    assert "5 bytes came, not 3,000,000" in got.fails(expected=3_000_000)
    assert got.left() == []


def test_a_disk_without_room_is_told_before(got: Got, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    text = got.fails()
    assert "no room for file.bin: it has 3.0 MB, and only 5.0 kB are free" in text
    assert "--data-folder" in text


def test_a_disk_that_fills_up(got: Got, server: Server) -> None:
    """A process may write 1 MB a file; what it wrote is kept, and gone on with when there is room."""
    code = (
        "import errno, pathlib, resource, sys; from guie_datasets.fetching import _http\n"
        "from guie_core import GuieError, files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "told = files.explain\n"  # the limit stands for a disk
        "files.explain = lambda error, *path: told(OSError(errno.ENOSPC, 'no room', error.filename), *path)\n"
        "try:\n"
        "    with files.folder_option('--data-folder'): _http.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "except GuieError as error: print(error)"
    )
    command = [sys.executable, "-c", code, server.url("/file.bin"), str(got.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "file.bin could not be written" in said
    assert "--data-folder" in said
    assert got.left() == ["file.bin.part", "file.bin.part.json"]
    assert 0 < got.path.with_name("file.bin.part").stat().st_size <= 1_000_000
    assert got.fetch() == BODY
    assert server.ranges() == [None, f"bytes={1_000_000}-"]


def presses_ctrl_c_at(path: Path, size: int) -> None:
    for _ in range(10_000):
        if path.exists() and path.stat().st_size >= size:
            break
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_and_on(got: Got, server: Server) -> None:
    def presses(handler: Handler, body: bytes) -> None:
        handler.serve(body, 1_000_000)
        presses_ctrl_c_at(got.path.with_name("file.bin.part"), 500_000)

    server.plan["/file.bin"] = [presses]
    assert "the same command fetches the rest" in got.fails(Interrupted)
    have = got.path.with_name("file.bin.part").stat().st_size
    assert have >= 500_000
    server.requests.clear()
    assert got.fetch() == BODY
    assert server.ranges() == [f"bytes={have}-"]


def test_secrets_in_an_address_are_not_shown(got: Got, server: Server) -> None:
    with pytest.raises(GuieError) as caught:
        _http.fetch(server.url("/none?token=secret").replace("//", "//user:word@"), got.path)
    assert "secret" not in str(caught.value)
    assert "word" not in str(caught.value)


# into its place


def packed(name: str, files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


IMAGES = {"birds/images/1.jpg": b"one", "birds/images/2.jpg": b"two"}


@pytest.fixture
def birds(server: Server) -> tuple[HttpArchive, HttpFile]:
    server.files["/birds.zip"] = packed("birds.zip", IMAGES)
    server.files["/names.json"] = b'{"0": "owl"}'
    return (
        HttpArchive(server.url("/birds.zip"), "birds", holds="images/*", page="https://example.org/birds"),
        HttpFile(server.url("/names.json"), "birds/texts/names.json"),
    )


def files(folder: Path) -> dict[str, bytes]:
    """The files of a data folder, without those that guie keeps in it for itself."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    own = re.compile(r"downloads/.*\.(lock|json)")
    return {name: data for name, data in found.items() if not own.fullmatch(name)}


def test_a_set_gets_into_its_place_once(birds: tuple[Download, ...], server: Server, tmp_path: Path) -> None:
    lines = list(fetch(birds, tmp_path))
    assert files(tmp_path) == {**IMAGES, "birds/texts/names.json": b'{"0": "owl"}'}
    digest = hashlib.sha256(server.files["/birds.zip"]).hexdigest()
    assert f"sha256 {digest} (no checksum published by its owner)" in lines[0]
    assert re.search(r"in its place: .*birds, 2 files, 6 bytes", lines[1])
    note = json.loads((tmp_path / "downloads/birds/birds.zip.json").read_text())
    assert (note["sha256"], note["size"], note["files"]) == (digest, len(server.files["/birds.zip"]), 2)
    assert note["source"] == server.url("/birds.zip")
    count = len(server.requests)
    assert all("is there already" in line for line in fetch(birds, tmp_path))
    assert len(server.requests) == count


def test_the_small_file_may_be_there_first(birds: tuple[Download, ...], tmp_path: Path) -> None:
    list(fetch(birds[::-1], tmp_path))
    assert files(tmp_path).keys() == {*IMAGES, "birds/texts/names.json"}


def test_archives_are_kept_on_request(birds: tuple[Download, ...], server: Server, tmp_path: Path) -> None:
    list(fetch(birds, tmp_path, keep_archive=True))
    assert (tmp_path / "downloads/birds/birds.zip").read_bytes() == server.files["/birds.zip"]
    shutil.rmtree(tmp_path / "birds")
    server.files.pop("/birds.zip")
    lines = list(fetch(birds, tmp_path))  # unpacked again, not fetched again
    assert lines[0].startswith("found in")
    assert set(IMAGES) <= files(tmp_path).keys()


def test_checksums(server: Server, tmp_path: Path) -> None:
    data = server.files["/b.tar.gz"] = packed("b.tar.gz", IMAGES)
    url, sha256, md5 = server.url("/b.tar.gz"), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest()
    for known in ({"sha256": "0" * 64}, {"md5": "1" * 32}, {"sha256": sha256, "md5": "2" * 32}):
        with pytest.raises(GuieError, match=r"(?s)not the file that its owner published.*It was removed"):
            list(fetch([HttpArchive(url, "birds", **known)], tmp_path))
        assert files(tmp_path) == {}
    lines = list(fetch([HttpArchive(url, "birds", sha256.upper(), md5=md5)], tmp_path))
    assert "sha256 and md5 published by its owner" in lines[0]
    assert files(tmp_path) == IMAGES


def test_a_file_by_hand_is_checked_and_not_removed(server: Server, tmp_path: Path) -> None:
    put = tmp_path / "downloads/birds/birds.zip"
    put.parent.mkdir(parents=True)
    put.write_bytes(packed("birds.zip", IMAGES))
    url = server.url("/birds.zip")
    with pytest.raises(GuieError, match="Remove it; run the same command again"):
        list(fetch([HttpArchive(url, "birds", "0" * 64)], tmp_path))
    assert put.is_file()
    list(fetch([HttpArchive(url, "birds")], tmp_path))
    assert files(tmp_path) == IMAGES
    assert server.requests == []


def test_another_file_than_the_last_time_is_told(birds: tuple[Download, ...], server: Server, tmp_path: Path) -> None:
    list(fetch(birds[:1], tmp_path))
    shutil.rmtree(tmp_path / "birds")
    server.files["/birds.zip"] = packed("birds.zip", {**IMAGES, "birds/images/3.jpg": b"3"})
    assert any("is another file than on 20" in line for line in fetch(birds[:1], tmp_path))


def test_an_archive_of_something_else(birds: tuple[Download, ...], server: Server, tmp_path: Path) -> None:
    server.files["/birds.zip"] = packed("birds.zip", {"cats/1.jpg": b"1"})
    with pytest.raises(GuieError, match=r"it holds no images/\*, but cats"):
        list(fetch(birds, tmp_path))
    assert not (tmp_path / "birds").exists()


def test_an_archive_that_leads_out(birds: tuple[Download, ...], server: Server, tmp_path: Path) -> None:
    server.files["/birds.zip"] = packed("birds.zip", {**IMAGES, "../evil.jpg": b"1"})
    with pytest.raises(GuieError, match=r"birds.zip: '../evil.jpg'"):
        list(fetch(birds, tmp_path / "data"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]


def test_without_network_one_message_says_what_to_do(tmp_path: Path) -> None:
    gone = "http://no-such-host.invalid"
    downloads = [
        HttpArchive(f"{gone}/birds.zip", "birds", page="https://example.org/birds"),
        HttpFile(f"{gone}/names.json", "birds/names.json", page="https://example.org/names"),
    ]
    with pytest.raises(GuieError) as caught:
        list(fetch(downloads, tmp_path, command="guie data download birds"))
    text = str(caught.value)
    for part in ("no network", "https://example.org/birds", "birds.zip", f"{tmp_path}/downloads/birds/"):
        assert part in text
    for part in ("https://example.org/names", "names.json", "Then run: guie data download birds"):
        assert part in text
    # as told
    (tmp_path / "downloads/birds/birds.zip").write_bytes(packed("birds.zip", IMAGES))
    (tmp_path / "downloads/birds/names.json").write_bytes(b"{}")
    list(fetch(downloads, tmp_path))
    assert set(IMAGES) <= files(tmp_path).keys()
    assert (tmp_path / "birds/names.json").read_bytes() == b"{}"


def test_two_processes_do_not_fetch_the_same(birds: tuple[Download, ...], tmp_path: Path) -> None:
    first = fetch(birds, tmp_path)
    next(first)  # between fetched and unpacked
    with pytest.raises(GuieError, match=r"being fetched to .* by another process"):
        list(fetch(birds, tmp_path))
    list(first)
    assert set(IMAGES) <= files(tmp_path).keys()


def test_a_set_that_another_program_unpacked_counts(birds: tuple[Download, ...], tmp_path: Path) -> None:
    (tmp_path / "birds/birds/images").mkdir(parents=True)
    assert not birds[0].is_there(tmp_path)
    (tmp_path / "birds/birds/images/1.jpg").write_bytes(b"1")
    assert birds[0].is_there(tmp_path)


@pytest.mark.parametrize("folder", ["", ".", "..", "/abs", "a/../b", "a\\b", "downloads", "downloads/x"])
def test_places_outside_the_data_folder(folder: str) -> None:
    for make in (lambda: KaggleArchive("a/b", folder), lambda: HttpFile("http://x.org/a", folder)):
        with pytest.raises(ValueError, match="below the data folder"):
            make()


def test_declarations_that_are_none() -> None:
    for slug in ("", "a", "a/b/c", "a/b?x", "https://www.kaggle.com/datasets/a/b"):
        with pytest.raises(ValueError, match="owner/name"):
            KaggleArchive(slug, "x")
    for url in ("", "x.org/a", "ftp://x.org/a", "file:///etc/passwd", "https:///a"):
        with pytest.raises(ValueError, match="http"):
            HttpArchive(url, "x")


# Kaggle, by a stand-in for its client

STAND_IN = """
import json, os, pathlib, sys
class KaggleApi:
    def authenticate(self):
        print("the key is", os.environ["KAGGLE_KEY"]); print("key", os.environ["KAGGLE_KEY"], file=sys.stderr)
        assert "VERBOSE" not in os.environ
        if "signed out" in os.environ["DOES"]: exit(1)
    def dataset_download_files(self, slug, path, force, quiet, unzip):
        does = os.environ["DOES"]
        out = pathlib.Path(path, slug.split("/")[1] + ".zip")
        data = pathlib.Path(os.environ["ARCHIVE"]).read_bytes()
        if "half" in does:
            out.write_bytes(data[: len(data) // 2])
            pathlib.Path(f"{out}.kaggle-partial").write_text(json.dumps({"validator": "x", "size": len(data)}))
            if "quietly" in does: return
        if "number" in does:
            error = Exception("refused for key " + os.environ["KAGGLE_KEY"])
            error.response = type("R", (), {"status_code": int(does.split()[-1])})
            raise error
        if "hang" in does: import time; time.sleep(60)
        if "full" in does: raise OSError(28, "No space left on device")
        if "away" in does: raise OSError("no connection; key " + os.environ["KAGGLE_KEY"])
        if "crash" in does: os.abort()
        out.write_bytes(data); pathlib.Path(f"{out}.kaggle-partial").unlink(missing_ok=True)
"""


def python_path(*first: str) -> str:
    """For the client's process: `first`, the package, and what is there already; no empty one, which is the folder that
    one works in."""
    parts = (*first, str(Path(_kaggle.__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(part for part in parts if part)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], KaggleArchive]:
    (tmp_path / "lib/kaggle/api").mkdir(parents=True)
    (tmp_path / "lib/kaggle/__init__.py").touch()
    (tmp_path / "lib/kaggle/api/__init__.py").touch()
    (tmp_path / "lib/kaggle/api/kaggle_api_extended.py").write_text(STAND_IN)
    (tmp_path / "archive.zip").write_bytes(packed("a.zip", {"train/1.tfrec": BODY[:50_000]}))
    monkeypatch.setenv("PYTHONPATH", python_path(str(tmp_path / "lib")))
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "archive.zip"))
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    monkeypatch.setenv("VERBOSE", "true")

    def does(what: str) -> KaggleArchive:
        monkeypatch.setenv("DOES", what)
        return KaggleArchive("someone/shards", "shards", holds="train/*.tfrec")

    return does


def test_kaggle(stand_in: Callable[[str], KaggleArchive], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = list(fetch([stand_in("well")], tmp_path / "data"))
    assert files(tmp_path / "data") == {"shards/train/1.tfrec": BODY[:50_000]}
    assert lines[0].startswith("fetched: shards.zip")
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("signed out", "kaggle.json"),
        ("number 401", "doesn't know these credentials"),
        ("number 403", "may not have this data set"),
        ("number 404", "no such data set"),
        ("number 500", "cannot be reached"),
        ("away", "cannot be reached"),
        ("half and away", "are kept"),
        ("half, quietly", "unfinished"),
        ("crash", "client failed"),
    ],
)
def test_kaggle_fails(
    does: str, words: str, stand_in: Callable[[str], KaggleArchive], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GuieError) as caught:
        list(fetch([stand_in(does)], tmp_path / "data", command="guie data download shards"))
    text = str(caught.value)
    assert words in text
    for part in ("https://www.kaggle.com/datasets/someone/shards", "shards.zip", f"{tmp_path}/data/downloads/shards/"):
        assert part in text
    assert text.endswith("Then run: guie data download shards")
    assert not (tmp_path / "data/downloads/shards/shards.zip").exists()
    assert not (tmp_path / "data/shards").exists()
    shown = [text, *capfd.readouterr()]
    error: BaseException | None = caught.value
    while error:  # what a traceback would show
        shown.append(repr(error))
        error = error.__cause__ or error.__context__
    assert KEY not in "".join(shown)
    list(fetch([stand_in("well")], tmp_path / "data"))
    assert files(tmp_path / "data") == {"shards/train/1.tfrec": BODY[:50_000]}


def test_kaggle_and_a_full_disk(stand_in: Callable[[str], KaggleArchive], tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="The disk is full") as caught:
        list(fetch([stand_in("full")], tmp_path / "data"))
    assert "by hand" not in str(caught.value)


def test_kaggle_and_too_small_a_disk(
    stand_in: Callable[[str], KaggleArchive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(GuieError, match=r"no room for shards.zip"):
        list(fetch([stand_in("half and hang")], tmp_path / "data"))


def test_kaggle_falls_silent(stand_in: Callable[[str], KaggleArchive], tmp_path: Path) -> None:
    stand_in("half and hang")
    with pytest.raises(_http.Unreachable, match="sends nothing more"):
        _kaggle.fetch("someone/shards", tmp_path / "shards.zip", stalled=0.3)


def test_kaggle_and_ctrl_c(stand_in: Callable[[str], KaggleArchive], tmp_path: Path) -> None:
    stand_in("half and hang")
    half = tmp_path / ".shards.zip.kaggle" / "shards.zip"
    presses = threading.Thread(target=presses_ctrl_c_at, args=(half, 1))
    presses.start()
    with pytest.raises(Interrupted, match="the same command fetches the rest"):
        _kaggle.fetch("someone/shards", tmp_path / "shards.zip")
    presses.join()
    assert not (tmp_path / "shards.zip").exists()


def test_the_client_ends_with_its_parent(
    stand_in: Callable[[str], KaggleArchive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("hang")
    monkeypatch.delenv("VERBOSE")
    command = [sys.executable, "-P", "-m", "guie_datasets.fetching._kaggle", "someone/shards", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdin
        client.stdin.close()
        assert client.wait(20) == 1


def test_a_client_in_the_working_directory_is_not_run(
    stand_in: Callable[[str], KaggleArchive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "kaggle.py").write_text("open('was run', 'w')")
    monkeypatch.chdir(work)
    list(fetch([stand_in("well")], tmp_path / "data"))
    assert [path.name for path in work.iterdir()] == ["kaggle.py"]


def test_kaggle_without_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kaggle.py").write_text("raise ImportError('no')")
    monkeypatch.setenv("PYTHONPATH", python_path(str(tmp_path)))
    with pytest.raises(GuieError, match=r"pip install 'guie-datasets\[kaggle\]'"):
        list(fetch([KaggleArchive("a/b", "b")], tmp_path / "data"))


# Kaggle, by its own client


@pytest.fixture
def kaggle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The real client, whose requests go to the server here: by its setting for tests, and as if by a proxy."""
    if importlib.util.find_spec("kaggle") is None:
        pytest.skip("the extra guie-datasets[kaggle] is not installed")
    for name in [*os.environ]:
        if name.startswith("KAGGLE_") or name.lower() in ("no_proxy", "https_proxy", "xdg_config_home"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PYTHONPATH", python_path())
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.setenv("VERBOSE", "true")  # makes the client print its requests, with what is in them
    server.files["/shards.zip"] = packed("a.zip", {"1.tfrec": BODY})
    server.plan[API] = [answers(302, Location="http://files.invalid/shards.zip")] * 9
    return server


API = "/api/v1/datasets.DatasetApiService/DownloadDataset"
SHARDS = KaggleArchive("someone/shards", "shards", holds="*.tfrec")


def test_the_real_client(
    kaggle: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    list(fetch([SHARDS], tmp_path / "data"))
    assert files(tmp_path / "data") == {"shards/1.tfrec": BODY}
    assert "Authorization" in dict(kaggle.requests)[API]
    assert KEY not in "".join(capfd.readouterr())


def test_the_real_client_goes_on(kaggle: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/.kaggle").mkdir()
    (tmp_path / "home/.kaggle/kaggle.json").write_text(json.dumps({"username": "someone", "key": KEY}))
    waits = SHARDS.waits(tmp_path / "data")

    def presses(handler: Handler, body: bytes) -> None:
        handler.serve(body, 2_500_000)
        presses_ctrl_c_at(waits.with_name(".shards.zip.kaggle") / "shards.zip", 1 << 21)
        handler.server.over.wait(10)

    kaggle.plan["/shards.zip"] = [presses]
    with pytest.raises(Interrupted, match=r"the same command fetches the rest"):
        list(fetch([SHARDS], tmp_path / "data"))
    assert not waits.exists()
    list(fetch([SHARDS], tmp_path / "data"))
    assert files(tmp_path / "data") == {"shards/1.tfrec": BODY}
    path, headers = kaggle.requests[-1]
    assert (path, headers.get("Range")) == ("/shards.zip", f"bytes={1 << 21}-")


def test_the_real_client_without_credentials(kaggle: Server, tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"(?s)kaggle.json.*by hand.*https://www.kaggle.com/datasets/someone/shards"):
        list(fetch([SHARDS], tmp_path / "data"))
    assert kaggle.requests == []


@pytest.mark.parametrize("code", [401, 403, 404])
def test_the_real_client_is_refused(
    code: int, kaggle: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    kaggle.plan[API] = [answers(code)]
    with pytest.raises(GuieError) as caught:
        list(fetch([SHARDS], tmp_path / "data"))
    assert ("no such data set" if code == 404 else "doesn't know these credentials") in str(caught.value)
    assert KEY not in "".join([str(caught.value), *capfd.readouterr()])
