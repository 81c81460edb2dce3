"""The plugins that ``guie plugins new`` writes. Files are templates of string.Template; ".in" keeps tools off them."""

from __future__ import annotations

import keyword
import re
import string
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from guie_core.errors import UsageError
from guie_core.files import atomic_directory
from guie_core.plugins import plugins
from guie_core.wording import shown


def write_plugin(kind: str, name: str, directory: Path) -> Path:
    """Write the package of a plugin into `directory`/guie-`name` and return that folder.

    Raises:
        UsageError: the name cannot be used, a plugin or an entry has it, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a plugin: lower-case letters, digits, - and _, like 'cars'.")
    for owner in (*plugins().loaded, *plugins().disabled):
        if owner.plugin == name:
            raise UsageError(f"there is a plugin {name!r} already, in {owner}. Choose another name.")
    if (offered := f"{kind}s") in plugins().kinds:
        for entry in plugins().entries(offered):
            if entry.name.casefold() == name:
                what = {"dataset": "data set"}.get(kind, kind)
                raise UsageError(f"there is a {what} {entry.name!r} already, in {entry.owner}. Choose another name.")
    folder = directory / f"guie-{name.replace('_', '-')}"
    if folder.exists():
        raise UsageError(f"{shown(folder)} is there already. Choose another name, or another --directory.")
    identifier = name.replace("-", "_")
    values = {
        "name": name,
        "distribution": folder.name,
        "package": f"guie_{identifier}",
        "identifier": identifier,
        "class_name": "".join(part.capitalize() for part in identifier.split("_")),
    }
    root = resources.files("guie_core.templates") / kind
    with atomic_directory(folder) as new:
        for path, source in _files(root, Path()):
            target = new / str(path).replace("package", values["package"]).replace("name", values["identifier"])
            target = target.with_suffix("") if target.suffix == ".in" else target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(string.Template(source.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    return Path(shown(folder))


def _files(folder: Traversable, path: Path) -> Iterator[tuple[Path, Traversable]]:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _files(item, path / item.name)
        elif item.name.endswith(".in"):
            yield path / item.name, item
