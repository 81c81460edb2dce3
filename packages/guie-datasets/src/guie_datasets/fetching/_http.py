"""A file over HTTP that may break off at any point and goes on from there.

What has arrived stands in `<file>.part`; beside it, `<file>.part.json` says of what it is the beginning: address, size,
and the server's mark of this version (ETag or date). Only with that mark is it gone on with. The file itself appears
when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from guie_core import GuieError, Interrupted
from guie_core.files import atomic_write, explain_os_errors
from guie_core.interrupt import Stop, interruptible
from guie_core.wording import shown, size

#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 60.0
#: How often in a row a connection may break without bringing a byte.
TRIES = 5
#: The longest wait between two tries, in seconds, whatever the server asks for.
LONGEST_WAIT = 60.0

_CHUNK = 1 << 18
_NO_NETWORK = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN))
_FOR_NOW = frozenset((408, 425, 429, 500, 502, 503, 504))  # worth another try


class Unreachable(GuieError):  # noqa: N818  # it says what is
    """The server cannot be reached or doesn't give the file; to be got by hand, perhaps."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a `.part` is the beginning of."""

    url: str
    size: int | None = None
    etag: str = ""
    modified: str = ""

    @property
    def mark(self) -> str:
        """What If-Range takes; "" when the server gives nothing that tells versions apart."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Broken(Exception):  # noqa: N818
    """The connection broke; another try may bring the rest."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait  # seconds, as the server asks for


def fetch(
    url: str,
    path: Path,
    *,
    expected: int = 0,
    timeout: float = TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` as `path`, going on from what an earlier attempt has left. `expected`: its size, where known.

    Raises:
        Unreachable: no connection, or an answer such as 404.
        GuieError: the disk is full; a redirect to an unsafe address; a size other than expected.
        Interrupted: Ctrl-C; the same call goes on.
    """
    with interruptible() as stop, explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _Fetching(url, path, expected, timeout, sleep, stop).run()


@contextlib.contextmanager
def arriving(name: str, total: int | None, have: int) -> Iterator[Callable[[int], None]]:
    """A progress bar for a file of `total` bytes; what it gives is called with the number that is there."""
    from guie_core.progress import bar

    unit, each = ("kilobyte", 1000) if total is not None and total < 10_000_000 else ("megabyte", 1_000_000)

    def counted(count: int) -> int:
        return -(-count // each)

    with bar(None if total is None else counted(total), f"fetching {name}", unit, counted(have)) as progress:
        yield lambda count: progress.advance(counted(count) - progress.count)


class _Fetching:
    def __init__(
        self, url: str, path: Path, expected: int, timeout: float, sleep: Callable[[float], None], stop: Stop
    ) -> None:
        self.url = url
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.beside = path.with_name(f"{path.name}.part.json")
        self.expected = expected
        self.timeout = timeout
        self.sleep = sleep
        self.stop = stop
        self.state = self._read_state()
        self.have = self.part.stat().st_size if self.part.is_file() else 0

    def run(self) -> None:
        broken = 0
        while True:
            if not self._can_go_on():
                self.have = 0
            elif self.have and self.have == self.state.size:
                break
            before = self.have
            try:
                with self._open() as response, open(self.part, "ab") as file:
                    file.truncate(self.have)
                    with arriving(self.path.name, self.state.size, self.have) as at:
                        self._receive(response, file, at)
                break
            except _Broken as error:
                broken = broken + 1 if self.have <= before else 1
                if broken >= TRIES:
                    raise Unreachable(f"{self._where}: {error}, {TRIES} times in a row.{self._kept()}") from None
                self._wait(max(error.wait, 2.0 ** (broken - 1)))
        self._complete()

    # what is there

    def _read_state(self) -> _State:
        try:
            state = _State(**json.loads(self.beside.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return _State(self.url)
        return state if state.url == self.url else _State(self.url)

    def _can_go_on(self) -> bool:
        return bool(self.state.mark) and (self.state.size is None or self.have <= self.state.size)

    def _begin(self, state: _State) -> None:
        """Start over: an empty part first, so that its description never belongs to bytes of another version."""
        self.part.write_bytes(b"")
        self.have = 0
        self.state = state
        with atomic_write(self.beside, "w") as file:
            json.dump(asdict(state), file)

    # the network

    def _open(self) -> Any:
        """The answer whose body goes on at `self.have`."""
        headers = {"User-Agent": "guie-datasets", "Accept-Encoding": "identity"}
        if self.have:
            headers |= {"Range": f"bytes={self.have}-", "If-Range": self.state.mark}
        try:
            response = _OPENER.open(urllib.request.Request(self.url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and self.have:  # there is no such rest: another version than the mark says
                    self.have = 0
                    raise _Broken("the server has no rest of what is here") from None
                if error.code in _FOR_NOW:
                    raise _Broken(f"the server answers {error.code} {error.reason}", _retry_after(error)) from None
            raise Unreachable(
                f"{self._where}: {_ANSWERS.get(error.code, 'the server answers')} ({error.code})."
            ) from None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise Unreachable(f"{self._where}: its certificate is not valid ({reason.verify_message}).") from None
            away = isinstance(reason, socket.gaierror) or getattr(reason, "errno", 0) in _NO_NETWORK
            if away and not self.have:
                raise Unreachable(f"{self._where}: there is no network, or no such server.") from None
            raise _Broken(_told(reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_told(error)) from None
        try:
            self._take_up(response.status, response.headers)
        except BaseException:
            response.close()
            raise
        return response

    def _take_up(self, status: int, headers: Message) -> None:
        """Look at the answer's head: whether it goes on with what is here, or begins a new version."""
        length = _whole_number(headers.get("Content-Length"))
        found = _State(self.url, length, headers.get("ETag", ""), headers.get("Last-Modified", ""))
        if status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if (
                not span
                or int(span[1]) != self.have
                or (span[2] != "*" and self.state.size is not None and int(span[2]) != self.state.size)
                or (found.etag and found.etag != self.state.etag)
            ):
                self.have = 0
                raise _Broken("the server sends another part than was asked for")
            return
        if status != 200:
            raise Unreachable(f"{self._where}: the server answers {status}, which is no file.")
        if self.expected and length not in (None, self.expected):
            raise GuieError(
                f"{self._where} has {length:,} bytes, not {self.expected:,}: its owner has changed it, or the address "
                "now leads to something else."
            )
        if length is not None and length > (free := shutil.disk_usage(self.path.parent).free + self.have):
            raise GuieError(
                f"The disk has no room for {self.path.name}: it has {size(length)}, and only {size(free)} are free in "
                f"{shown(self.path.parent)}.\nMake room, or choose a folder on another disk (--data-folder)."
            )
        self._begin(found)

    def _receive(self, response: Any, file: IO[bytes], at: Callable[[int], None]) -> None:
        try:
            while True:
                if self.stop:
                    raise Interrupted(f"{self.path.name} has not arrived whole; the same command fetches the rest.")
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(_told(error)) from None
                if not chunk:
                    break
                file.write(chunk)
                self.have += len(chunk)
                at(self.have)
        finally:
            file.flush()
            os.fsync(file.fileno())
        if self.state.size is not None and self.have < self.state.size:
            raise _Broken(f"the connection broke off after {self.have:,} of {self.state.size:,} bytes")

    def _wait(self, seconds: float) -> None:
        for _ in range(max(1, round(min(seconds, LONGEST_WAIT) * 4))):
            if self.stop:
                raise Interrupted(f"{self.path.name} has not arrived whole; the same command fetches the rest.")
            self.sleep(0.25)

    # the end

    def _complete(self) -> None:
        for known in (self.state.size, self.expected or None):
            if known is not None and self.have != known:
                self._drop()
                raise GuieError(
                    f"{self._where}: {self.have:,} bytes came, not {known:,}. They were removed; run the same command "
                    "again."
                )
        os.replace(self.part, self.path)
        self.beside.unlink(missing_ok=True)

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.beside.unlink(missing_ok=True)

    @property
    def _where(self) -> str:
        return f"{self.path.name} from {address(self.url)}"

    def _kept(self) -> str:
        return f" {size(self.have)} have arrived and are kept; the same command fetches the rest." if self.have else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from a safe address to an unsafe one, nor to anything but HTTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise GuieError(
                f"{address(req.full_url)} redirects to {address(newurl)}, which is less safe. Not followed: anybody on "
                "the way could put another file there."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            for name in ("Location", "URI"):
                urlsplit(headers.get(name, "")).port  # noqa: B018  raises for what is no number
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:  # of urllib, about its host or port
            raise GuieError(f"{address(req.full_url)} redirects to what is no address ({error}).") from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


_OPENER = urllib.request.build_opener(_Redirects)
_ANSWERS = {
    401: "it is to be had with a login only",
    403: "the server refuses to give it",
    404: "it is not there any more",
    410: "it is not there any more",
    416: "the server has no such part of it",
}


def address(url: str) -> str:
    """`url` as it may be shown: without a query or a login, which may be secrets."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _retry_after(error: urllib.error.HTTPError) -> float:
    return float(_whole_number(error.headers.get("Retry-After")) or 0)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None


def _told(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "the server sends nothing more"
    if isinstance(reason, OSError):
        return f"the connection failed ({reason.strerror or reason})"
    return f"the connection broke off ({reason or type(reason).__name__})"
