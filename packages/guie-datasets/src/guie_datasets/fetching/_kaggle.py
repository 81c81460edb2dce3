"""Kaggle data sets, through Kaggle's own client in a process of its own.

Importing that client already signs in, makes folders, and may print or exit; with VERBOSE in the environment it prints
the requests with the key in them. In a process whose output is thrown away none of that reaches the user, the log or a
traceback: all that comes back is one word about what went wrong.

The client finds the user's credentials itself: KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, or kaggle.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from guie_core import GuieError, Interrupted
from guie_core.files import explain_os_errors
from guie_core.interrupt import Stop, interruptible
from guie_core.wording import shown, size
from guie_datasets.fetching._http import Unreachable, arriving

#: Seconds without a byte after which Kaggle's client is given up; its own limit is 300 for each of several tries.
STALLED = 900.0

_PROBLEMS = {
    "client": "Kaggle's client is not installed: pip install 'guie-datasets[kaggle]'.",
    "credentials": (
        "Kaggle asks who you are: put the kaggle.json of your account (kaggle.com, Settings, API) into ~/.kaggle, or "
        "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY."
    ),
    "refused": "Kaggle doesn't know these credentials, or they may not have this data set.",
    "missing": "Kaggle has no such data set any more.",
    "network": "Kaggle cannot be reached: there is no network, or it broke off too often.",
    "disk": "The disk is full or cannot be written.",
}


def fetch(slug: str, path: Path, *, stalled: float = STALLED) -> None:
    """Fetch all files of the Kaggle data set `slug` ("owner/name") as the zip `path`, which appears when it's whole.

    What a broken attempt has left is gone on with, as Kaggle's client sees fit.

    Raises:
        Unreachable: no client, credentials or network, or Kaggle refuses.
        GuieError: the disk is full.
        Interrupted: Ctrl-C; the same call goes on.
    """
    folder = path.with_name(f".{path.name}.kaggle")
    coming = folder / f"{slug.split('/')[1]}.zip"
    with explain_os_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    with interruptible() as stop, _client(slug, folder) as client:
        _watch(client, coming, stop, stalled)
        answer = client.stdout.read() if client.stdout else b""
    with contextlib.suppress(ValueError):
        answer = json.loads(answer)
    if answer != "done":
        told = _PROBLEMS.get(str(answer), "Kaggle's client failed.")
        raise (GuieError if answer == "disk" else Unreachable)(f"{slug}: {told}{_kept(coming)}")
    if not coming.is_file() or _marker(coming).exists():  # the client's mark of what is not whole
        raise Unreachable(f"{slug}: Kaggle's client left it unfinished.{_kept(coming)}")
    with explain_os_errors(path):
        os.replace(coming, path)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _client(slug: str, folder: Path) -> Any:
    """The other process; it ends with this block, and with this process."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VERBOSE", "VERBOSE_OUTPUT")}
    client = subprocess.Popen(
        # -P: a kaggle.py in the folder that the user works in is not the client
        [sys.executable, "-P", "-m", "guie_datasets.fetching._kaggle", slug, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C comes to this process alone
    )
    try:
        yield client
    finally:
        client.kill()
        client.communicate()


def _watch(client: subprocess.Popen[bytes], path: Path, stop: Stop, stalled: float) -> None:
    """Show how far it is until the process ends."""
    have, since = _length(path), time.monotonic()
    total = None
    with contextlib.ExitStack() as stack:
        at = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(0.1)
                return
            if stop:
                raise Interrupted(f"{path.name} has not arrived whole; the same command fetches the rest.")
            now = _length(path)
            if total is None and (total := _total(path)):
                _check_room(path, total, total - now)
            if at is None and now:
                at = stack.enter_context(arriving(path.name, total, have))
            if at and now > have:
                at(now)
            if now != have:
                have, since = now, time.monotonic()
            elif time.monotonic() - since > stalled:
                raise Unreachable(f"{path.name}: Kaggle sends nothing more.{_kept(path)}")


def _check_room(path: Path, total: int, rest: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if rest > free:
        raise GuieError(
            f"The disk has no room for {path.name}: it has {size(total)}, and only {size(free)} are free in "
            f"{shown(path.parent.parent)}.\nMake room, or choose a folder on another disk (--data-folder)."
        )


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.kaggle-partial")


def _total(path: Path) -> int | None:
    """The size of what arrives, from the mark that the client keeps beside it."""
    try:
        total = json.loads(_marker(path).read_text("utf-8"))["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return total if isinstance(total, int) else None


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _kept(path: Path) -> str:
    have = _length(path)
    return f" {size(have)} have arrived and are kept; the same command fetches the rest." if have else ""


# the other process


def _fetch_here(slug: str, folder: str) -> str:
    """Call the client. One word comes back; never an error's text, which may hold a key or a signed address."""
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:
        return "client"
    except (Exception, SystemExit):  # how other versions say that there are no credentials
        return "credentials"
    try:
        api = KaggleApi()
        api.authenticate()
    except SystemExit:
        return "credentials"
    except Exception as error:
        return _problem(error)
    try:
        api.dataset_download_files(slug, path=folder, force=False, quiet=True, unzip=False)
    except (Exception, SystemExit) as error:
        return _problem(error)
    return "done"


def _problem(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return {401: "refused", 403: "refused", 404: "missing"}.get(status, "network")
    if isinstance(error, OSError):  # those of requests are, without a number
        return "network" if error.errno is None or isinstance(error, ConnectionError) else "disk"
    return "failed"


def _end_with_parent(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    # a pipe of its own: the client's exit() closes sys.stdin, and would wait for whoever reads from that
    threading.Thread(target=_end_with_parent, args=(os.dup(0),), daemon=True).start()
    with contextlib.redirect_stdout(sys.stderr):
        said = _fetch_here(sys.argv[1], sys.argv[2])
    os.write(1, json.dumps(said).encode())
    os._exit(0)  # whatever threads the client has left
