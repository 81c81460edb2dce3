from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .chain import STAGES, Chain, arguments, draw, learnt, leftovers
from .faults import Fault, Server


@pytest.fixture(scope="package")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    draw(folder / "data")
    with Server(folder / "runs") as server:
        whole = server.run(arguments(folder / "data", folder / "runs" / "whole"), Fault(clock="calls"))
        assert whole.code == 0, whole.err
        assert [name for name in STAGES if f" {name} " not in whole.out] == []
        found = learnt(folder / "runs" / "whole")
        assert len(found) == 30
        assert leftovers(folder / "runs" / "whole") == []
        yield Chain(server, folder / "data", whole.moments, found)


@pytest.fixture
def work_dir(chain: Chain) -> Iterator[Path]:
    """Of a run with a store of its own."""
    folder = chain.server.folder / "own"
    yield folder / "runs" / "small"
    shutil.rmtree(folder, ignore_errors=True)
