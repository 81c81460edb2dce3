from __future__ import annotations

import os
import signal
import threading

import pytest

from guie_core.interrupt import interruptible


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_first_ctrl_c_asks_and_the_second_stops(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stop:
        assert not stop
        press()
        assert stop
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == ("\nstopping at the next safe point; press Ctrl-C again to stop at once\n")


def test_termination_asks_too(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGTERM) is before


def test_inner_block_shares_the_outer_one(capsys: pytest.CaptureFixture[str]) -> None:
    with interruptible() as outer:
        with interruptible() as inner:
            press()
            assert inner
        assert outer
        with interruptible() as later:
            assert later
    with interruptible() as another:
        assert not another


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread() -> None:
    seen = []

    def work() -> None:
        with interruptible() as stop:
            seen.append(bool(stop))
            stop.request()
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, True]
