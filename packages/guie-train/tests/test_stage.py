"""Stages: run once for each key, and what the key depends on."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest

from guie_core import Config, GuieError, Interrupted, Slot, UsageError
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_train.device import OutOfMemory
from guie_train.fitting import Training
from guie_train.runner import _chosen
from guie_train.stage import NOT_IN_KEY, Stage, StageRecord, Workspace, _components, blamed, blaming, damage_told

RUNS: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Number(Stage[int]):
    slug: ClassVar[str] = "number"
    value: int
    head: Annotated[Config, Slot("heads")] | None = None
    colour: str = field(default="red", metadata=NOT_IN_KEY)

    def run(self, folder: Path, workspace: Workspace) -> None:
        RUNS.append(self.name)
        (folder / "number").write_text(str(self.value))

    def load(self, folder: Path) -> int:
        return int((folder / "number").read_text())


@dataclass(frozen=True, kw_only=True)
class Store(Number):
    slug: ClassVar[str] = "store"
    incremental: ClassVar[bool] = True
    fail: ClassVar[list[Exception]] = []

    def run(self, folder: Path, workspace: Workspace) -> None:
        if self.fail:
            (folder / "half").touch()
            raise self.fail.pop()
        super().run(folder, workspace)


@dataclass(frozen=True, kw_only=True)
class Sum(Stage[int]):
    slug: ClassVar[str] = "sum"
    one: Stage[int]
    others: Mapping[str, Stage[int]]
    fail: ClassVar[list[Exception]] = []

    def run(self, folder: Path, workspace: Workspace) -> None:
        RUNS.append(self.name)
        previous = (folder / "half").exists()
        (folder / "half").touch()
        if self.fail:
            raise self.fail.pop()
        total = workspace.get(self.one) + sum(workspace.get(stage) for stage in self.others.values())
        (folder / "sum").write_text(f"{total} {previous}")

    def load(self, folder: Path) -> int:
        return int((folder / "sum").read_text().split()[0])

    def summary(self, output: int) -> str:
        return f"sum {output}"


@pytest.fixture(autouse=True)
def no_runs() -> None:
    RUNS.clear()


def workspace(tmp_path: Path, **more: Any) -> Workspace:
    return Workspace(tmp_path / "store", profile("cpu"), Stop(), **more)


def three() -> Sum:
    return Sum(name="sum", one=Number(name="one", value=1), others={"two": Number(name="two", value=2)})


def test_runs_inputs_first_and_everything_once(tmp_path: Path) -> None:
    assert workspace(tmp_path).get(three()) == 3
    assert RUNS == ["one", "two", "sum"]
    assert workspace(tmp_path).get(three()) == 3
    assert RUNS == ["one", "two", "sum"]


def test_only_what_depends_on_a_change_runs_again(tmp_path: Path) -> None:
    workspace(tmp_path).get(three())
    RUNS.clear()
    changed = Sum(name="sum", one=Number(name="one", value=1), others={"two": Number(name="two", value=5)})
    assert workspace(tmp_path).get(changed) == 6
    assert RUNS == ["two", "sum"]
    assert workspace(tmp_path).get(three()) == 3  # the former result is still there
    assert RUNS == ["two", "sum"]


def test_the_key_depends_on_arguments_and_owners_but_not_on_names() -> None:
    one = Number(name="one", value=1)
    assert one.key == Number(name="uno", value=1, colour="blue").key
    assert one.key != Number(name="one", value=2).key
    headed = Number(name="one", value=1, head={"type": "Linear", "out_features": 3})
    assert headed.key != one.key
    assert headed.versions.keys() == {"guie-models"}  # Number itself belongs to no plugin


def test_components_within_components_have_owners_too() -> None:
    training = Training(epochs=1, batch_size=2, optimizer={"type": "SAM", "base": {"type": "AdamW"}})
    hints = dict(_components(Training, training))
    assert hints == {"optimizers": {"type": "AdamW"}}
    assert [kind for kind, _ in _components(Training, training)] == ["optimizers", "optimizers"]


def test_records_say_what_was_reused(tmp_path: Path) -> None:
    records: list[StageRecord] = []
    workspace(tmp_path).get(three())
    workspace(tmp_path, on_record=records.append).get(three())
    assert [(r.name, r.reused, r.summary) for r in records] == [("sum", True, "sum 3")]


def test_an_interrupted_stage_goes_on_in_its_folder_and_nothing_half_done_counts(tmp_path: Path) -> None:
    Sum.fail.append(Interrupted("stopped"))
    with pytest.raises(Interrupted):
        workspace(tmp_path).get(three())
    assert not workspace(tmp_path).complete(three())
    assert workspace(tmp_path).get(three()) == 3
    assert (workspace(tmp_path).folder(three()) / "sum").read_text() == "3 True"


def test_again_runs_from_the_start_and_an_interruption_of_it_goes_on(tmp_path: Path) -> None:
    stage = three()
    workspace(tmp_path).get(stage)
    Sum.fail.append(Interrupted("stopped"))
    with pytest.raises(Interrupted):
        workspace(tmp_path, again=frozenset([stage.key])).get(stage)
    assert not workspace(tmp_path).complete(stage)  # else the plain command would take the old result
    # which is there all the same, for other runs have links to it
    assert (workspace(tmp_path).folder(stage) / "sum").read_text() == "3 False"
    assert (workspace(tmp_path).folder(stage) / "stage.json").exists()
    assert workspace(tmp_path).get(stage) == 3
    assert (workspace(tmp_path).folder(stage) / "sum").read_text() == "3 True"
    again = workspace(tmp_path, again=frozenset([stage.key]))
    assert again.get(stage) == 3
    assert (again.folder(stage) / "sum").read_text() == "3 False"


def test_a_store_that_is_made_again_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    stage = Store(name="store", value=7)
    workspace(tmp_path).get(stage)
    folder = workspace(tmp_path).folder(stage)
    (folder / "of another run").touch()
    Store.fail.append(Interrupted("stopped"))
    with pytest.raises(Interrupted):
        workspace(tmp_path, again=frozenset([stage.key])).get(stage)
    assert sorted(path.name for path in folder.iterdir()) == ["number", "of another run", "stage.json"]
    assert not workspace(tmp_path).complete(stage)
    assert workspace(tmp_path).get(stage) == 7
    assert sorted(path.name for path in folder.iterdir()) == ["half", "number", "stage.json"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [stage.key]
    assert workspace(tmp_path).complete(stage)


def test_what_a_killed_run_left_in_a_store_that_is_whole_is_taken_away(tmp_path: Path) -> None:
    """It was writing stage.json, which another stage of the same store had written before."""
    stage = Store(name="store", value=7)
    workspace(tmp_path).get(stage)
    folder = workspace(tmp_path).folder(stage)
    left = folder / ".stage.json.ab12cd34.tmp"
    left.touch()
    with open(folder.with_name(f".{stage.key}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # somebody is writing it
        assert workspace(tmp_path).get(stage) == 7
        assert left.exists()
    assert workspace(tmp_path).get(stage) == 7
    assert sorted(path.name for path in folder.iterdir()) == ["number", "stage.json"]
    assert RUNS == ["store"]


def test_again_means_a_stage_and_what_depends_on_it() -> None:
    stage = three()
    stages = [stage.one, *stage.others.values(), stage]
    assert _chosen(stages, None, "two") == (stages, [stage.others["two"], stage])
    assert _chosen(stages, "one", None) == ([stage.one], [])
    with pytest.raises(UsageError, match=r"no stage 'three'\. Its stages are: 'one', 'two', 'sum'"):
        _chosen(stages, "one", "three")


def test_ctrl_c_between_stages_is_heard(tmp_path: Path) -> None:
    space = workspace(tmp_path)
    space.stop.request()
    with pytest.raises(Interrupted, match="before stage 'one'"):
        space.get(three())
    assert RUNS == []


def test_two_processes_do_not_make_the_same_result(tmp_path: Path) -> None:
    stage = Number(name="one", value=1)
    folder = workspace(tmp_path).folder(stage)
    folder.parent.mkdir(parents=True)
    with open(folder.with_name(f".{stage.key}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(GuieError, match="another process is making"):
            workspace(tmp_path).get(stage)
    assert workspace(tmp_path).get(stage) == 1


def test_outputs_for_which_memory_is_too_small_are_not_said_to_be_damaged(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory) as told, damage_told(tmp_path):
        np.empty(1 << 50)
    assert str(told.value) == (
        f"{tmp_path}: the memory is too small to read it. Close what else takes memory on this machine, or use one "
        "with more.\nnumpy: Unable to allocate 8.00 PiB for an array with shape (1125899906842624,) and data type "
        "float64"
    )
    with pytest.raises(GuieError, match=r"is damaged \(ValueError: no number\); delete it"), damage_told(tmp_path):
        raise ValueError("no number")


def test_what_made_a_result_stands_beside_it(tmp_path: Path) -> None:
    space = workspace(tmp_path)
    space.get(three())
    about = json.loads((space.folder(three()) / "stage.json").read_text())
    assert about["stage"] == "sum"
    assert about["arguments"]["one"] == {"stage": Number(name="one", value=1).key}


def test_an_error_is_of_the_stage_in_which_it_arose(tmp_path: Path) -> None:
    one, other = Store(name="one", value=1), Number(name="other", value=2)
    total = Sum(name="total", one=one, others={"other": other})

    def error_of(stage: Stage[int]) -> str:
        with pytest.raises(GuieError) as error:
            workspace(tmp_path).get(stage)
        return blamed(error.value)

    Store.fail.append(GuieError("of an input"))
    assert error_of(total) == one.work
    Sum.fail.append(GuieError("its own"))
    assert error_of(total) == total.work
    # other settings, other inputs, and what no output depends on: each may be why
    others = [Store(name="one", value=7), Store(name="one", value=1, colour="blue"), Number(name="one", value=1)]
    assert len({one.work, total.work, *(each.work for each in others)}) == 5
    assert Store(name="one", value=1).work == one.work

    def in_other_words() -> None:
        try:
            with blaming(one):
                raise GuieError("the disk makes noises")
        except GuieError as error:
            raise UsageError(f"in other words: {error}") from None

    with pytest.raises(UsageError) as told:
        in_other_words()
    assert blamed(told.value) == one.work
    assert blamed(GuieError("of no stage")) == ""
