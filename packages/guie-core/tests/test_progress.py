from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

from guie_core.progress import LINE_INTERVAL, Bar, bar


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(total: int | None, initial: int = 0) -> tuple[Bar, Clock, io.StringIO]:
    clock, file = Clock(), io.StringIO()
    return Bar(total, "features valid", "image", initial, file=file, clock=clock), clock, file


def test_lines_are_rare_without_a_terminal() -> None:
    progress, clock, file = made(1000)
    with progress:
        for _ in range(100):
            clock.now += 1
            progress.advance(10)
    lines = file.getvalue().splitlines()
    assert lines == [
        "features valid: 300/1,000 images, 30 %, 10.0 images/s, 01:10 left",
        "features valid: 600/1,000 images, 60 %, 10.0 images/s, 00:40 left",
        "features valid: 900/1,000 images, 90 %, 10.0 images/s, 00:10 left",
        "features valid: 1,000/1,000 images, 100 %, 10.0 images/s, took 01:40",
    ]
    assert LINE_INTERVAL == 30


def test_waiting_for_data_is_shown() -> None:
    progress, clock, file = made(10)
    with progress.waiting():
        clock.now += 1
    clock.now += 3
    progress.advance(2)
    assert progress.wait == 0.25
    progress.close()
    assert file.getvalue() == "features valid: 2/10 images, 20 %, 2.0 s/image, 00:16 left, data wait 25 %, took 00:04\n"


def test_what_was_done_before_counts_for_the_share_but_not_for_the_rate() -> None:
    progress, clock, _ = made(100, initial=50)
    clock.now += 5
    progress.advance(10)
    assert progress.line() == "features valid: 60/100 images, 60 %, 2.0 images/s, 00:20 left"


def test_unknown_total_and_failure() -> None:
    progress, clock, file = made(None)
    try:
        with progress:
            clock.now += 2
            progress.advance(5)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert file.getvalue() == "features valid: 5 images, 2.5 images/s, stopped after 00:02\n"


def test_one_of_an_unknown_number() -> None:
    progress, clock, _ = made(None)
    clock.now += 2
    progress.advance()
    assert progress.line() == "features valid: 1 image, 2.0 s/image"


def test_shares_of_the_whole_have_no_rate() -> None:
    clock, file = Clock(), io.StringIO()
    with Bar(1000, "search hashes", "part", rated=False, file=file, clock=clock) as progress:
        clock.now += 1
        progress.advance(500)
        assert progress.line() == "search hashes: 500/1,000 parts, 50 %, 00:01 left"
        progress.advance(500)
    assert file.getvalue() == "search hashes: 1,000/1,000 parts, 100 %, took 00:01\n"


def test_nothing_to_do() -> None:
    progress, _, file = made(0)
    with progress:
        pass
    assert file.getvalue() == "features valid: 0 images, 0.0 images/s, took 00:00\n"


def test_bar_goes_to_stderr(capsys: object) -> None:
    with bar(3, "work") as progress:
        progress.advance(3)
    out, err = capsys.readouterr()  # type: ignore[attr-defined]
    assert out == ""
    assert err.startswith("work: 3/3 images, 100 %")


def test_bar_on_a_terminal() -> None:
    code = (
        "from guie_core.progress import bar, write\n"
        "with bar(4, 'features valid') as p:\n"
        "    for _ in range(4):\n"
        "        with p.waiting(): pass\n"
        "        p.advance()\n"
        "    write('a line between')\n"
    )
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower, env={**os.environ, "COLUMNS": "100"}) as child:
        os.close(follower)
        output = b""
        while True:
            try:
                part = os.read(leader, 1000)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            output += part
    os.close(leader)
    assert child.returncode == 0
    text = output.decode()
    assert "features valid: 100%|" in text
    assert "4/4" in text
    assert "left" in text
    assert "data wait " in text
    assert "a line between" in text
