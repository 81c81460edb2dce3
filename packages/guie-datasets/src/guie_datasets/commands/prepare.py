"""``guie data prepare``: data sets and one's own images to a manifest."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guie_core import GuieError, UsageError, lookup
from guie_core.files import folder_option
from guie_core.interrupt import interruptible
from guie_core.signature import signature
from guie_core.spelling import spelled, told_as
from guie_core.tables import table
from guie_core.wording import plural, shown
from guie_datasets.commands.options import MAX_BAD, data_folder_option, max_bad_option, seed_option, workers_option
from guie_datasets.commands.outputs import Own, check_beside, check_output, force_option, is_quarantine, same_file
from guie_datasets.places import absolute

if TYPE_CHECKING:
    from guie_datasets import Manifest


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="NAME|PATH...")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The manifest [default: NAME.parquet here; of several data sets ONE+OTHER.parquet; of NAME.parquet, "
    "NAME.manifest.parquet].",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of a data set (see guie data info NAME). Of several data sets: NAME.KEY=VALUE, or 0.KEY=VALUE for "
    "the first. May be repeated.",
)
@max_bad_option
@click.option("--keep-duplicates", is_flag=True, help="Keep images that are there more than once in one class.")
@click.option("--min-images", type=click.IntRange(1), metavar="N", help="Leave out classes with fewer images.")
@click.option("--max-images", type=click.IntRange(1), metavar="N", help="Keep at most so many images of a class.")
@seed_option("Chooses the images that --max-images keeps.")
@workers_option
@data_folder_option
@force_option
def prepare(
    what: tuple[str, ...],
    output: Path | None,
    overrides: tuple[str, ...],
    max_bad: float,
    keep_duplicates: bool,
    min_images: int | None,
    max_images: int | None,
    seed: int,
    workers: int | None,
    force: bool,
) -> None:
    """Make a manifest: every image is read once, checked, measured and hashed; what is wrong is listed.

    A data set is named (guie data list), or is a path: a folder of class folders, a CSV or Parquet table, TFRecord
    files or tar shards or a folder of them, or a manifest. Several become one, in this order, with labels of their own.

    \b
    guie data prepare pictures
    guie data prepare cars.csv --set root=photos --min-images 3
    guie data prepare products10k glr2021 --set glr2021.drop_classes=2000
    """
    from guie_datasets import prepare as prepare_
    from guie_datasets.filters import Filter, MaxImages, MinImages, apply_filters
    from guie_datasets.preparing.recognition import datasets, named_settings

    settings = named_settings(what, overrides)
    inputs = _inputs(what, settings)
    path = output or _default(what, settings, inputs)
    quarantine = path.with_suffix(".quarantine.csv")
    filters: list[Filter] = [MinImages(min_images)] if min_images is not None else []
    filters += [MaxImages(max_images, seed)] if max_images is not None else []
    command = {"data": list(settings.values()), "filters": list(map(repr, filters)), "keep_duplicates": keep_duplicates}
    check_output(path, {".parquet": _made_by(command)}, inputs=inputs, example="images.parquet", force=force)
    check_beside(quarantine, path, is_quarantine, force=force)
    spelling = {**_options(settings), **MAX_BAD}
    with interruptible(), folder_option("--output"), told_as(spelling):
        manifest, found = prepare_(
            datasets(settings), max_bad=max_bad, keep_duplicates=keep_duplicates, workers=workers, quarantine=quarantine
        )
    images = len(manifest)
    limits = [f"--min-images {min_images}"] * bool(min_images) + [f"--max-images {max_images}"] * bool(max_images)
    try:
        manifest = apply_filters(manifest, filters)
    except GuieError as error:
        raise UsageError(f"{' and '.join(limits)} leaves none of {plural(images, 'image')}") from error
    with folder_option("--output"):
        manifest.with_provenance({**manifest.provenance, "command": command}).write(path)

    click.echo(f"{shown(path)}: {_counts(manifest)}")
    click.echo(table([(name, plural(count, "image"), _classes(labels)) for name, count, labels in _sources(manifest)]))
    if filters:
        click.echo(f"{' and '.join(limits)} left out {plural(images - len(manifest), 'image')}.")
    click.echo(f"Found: {found}; listed in {shown(quarantine)}." if found else "Nothing was found wrong.")
    for each in found.told:
        click.echo(f"  note: {spelled(each, spelling)}")
    name = shlex.quote(shown(path))
    click.echo(f"\nLook at it:        guie data stats {name}\n                   guie data show {name}")
    click.echo(f'In an experiment:  data=[dict(type="manifest", path={json.dumps(shown(path))})]')


def _options(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How the arguments of the data sets are given."""
    named: dict[str, str] = {}
    for key, values in settings.items():
        for name in signature(lookup("datasets", values["type"]).load()).hints:
            one = "" if len(settings) == 1 else f"{key}."
            named[name] = f"--set {'NAME.' if name in named else one}{name}="
    return named


def _default(what: Sequence[str], settings: Mapping[str, Mapping[str, Any]], inputs: Sequence[Path]) -> Path:
    """Where the manifest goes: called as the data sets are, and not as a table that it is made of."""
    names = []
    for argument, values in zip(what, settings.values(), strict=True):
        path = absolute(argument).resolve()
        names.append(
            argument.replace("/", "-") if values["type"] == argument else path.stem if path.is_file() else path.name
        )
    plain = Path(f"{'+'.join(names)}.parquet")
    return plain.with_suffix(".manifest.parquet") if any(same_file(plain, each) for each in inputs) else plain


def _inputs(what: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """What may be a file that is read: the arguments, and settings that are texts; a text need not be a path."""
    texts = [*what]
    for value in (value for values in settings.values() for value in values.values()):
        texts += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
    return [Path(os.path.expanduser(text)) for text in texts]


def _made_by(command: Mapping[str, Any]) -> Own:
    """A manifest of the same data and choices."""

    def own(path: Path) -> bool:
        from guie_datasets import Manifest

        try:
            return bool(Manifest.read(path).provenance.get("command") == json.loads(json.dumps(command)))
        except GuieError:
            return False

    return own


def _sources(manifest: Manifest) -> list[tuple[str, int, int]]:
    """(source, images, classes) of each source, in order of appearance."""
    grouped = manifest.table.group_by("source", use_threads=False).aggregate(
        [("label", "count"), ("label", "count_distinct")]
    )
    columns = (grouped.column(name).to_pylist() for name in ("source", "label_count", "label_count_distinct"))
    return list(zip(*columns, strict=True))


def _counts(manifest: Manifest) -> str:
    import pyarrow.compute as pc

    return f"{plural(len(manifest), 'image')} of {_classes(pc.count_distinct(manifest.table.column('label')).as_py())}"


def _classes(count: int) -> str:
    return f"{count:,} class{'' if count == 1 else 'es'}"
