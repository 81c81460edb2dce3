"""``guie data download``: data sets from where their owners publish them."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from guie_core import Entry, GuieError, Interrupted, lookup
from guie_core.tables import table
from guie_core.wording import shown
from guie_datasets.commands.options import data_folder_option
from guie_datasets.licences import in_words, is_own


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@data_folder_option
@click.option("--keep-archive", is_flag=True, help="Keep each archive, in DIR/downloads, when it has been unpacked.")
def download(names: tuple[str, ...], keep_archive: bool) -> None:
    """Fetch the data sets NAME... and unpack them into the data folder.

    What is there is not fetched again. What broke off is gone on with by the same command. Kaggle wants to know you:
    kaggle.json, KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY.
    """
    from guie_core.files import folder_option
    from guie_datasets.fetching.download import fetch
    from guie_datasets.places import data_folder

    folder = data_folder()
    where = "" if folder == Path("data").absolute() else f" --data-folder {shlex.quote(shown(folder))}"
    sets = [(entry, getattr(entry.load(), "downloads", ())) for entry in (lookup("datasets", name) for name in names)]
    failures: list[str] = []
    for entry, downloads in sets:
        if not downloads:
            click.echo(f"{entry.name}: {_nothing(entry)}")
            continue
        click.echo(f"{entry.name}: {entry.summary}")
        origin = entry.origin
        rows = [("licence", entry.licence or "not known")]
        if origin:
            rows += [("commercial use", in_words(entry)), ("size", origin.size or "not known")]
        rows += [("from", each.source) for each in downloads]
        click.echo(table([*rows, ("to", shown(folder))]))
        again = f"guie data download {entry.name}{where}"
        try:
            with folder_option("--data-folder"):
                for line in fetch(downloads, folder, keep_archive=keep_archive, command=again):
                    click.echo(f"  {line}")
        except Interrupted:
            raise
        except GuieError as error:  # the other sets may be had all the same
            failures.append(str(error))
        else:
            click.echo(f"Next: guie data prepare {entry.name}{where}")
    if failures:
        raise GuieError("\n\n".join(failures))


def _nothing(entry: Entry) -> str:
    if is_own(entry):
        return f"nothing to fetch, it reads data of your own. More: guie data info {entry.name}"
    if entry.origin is None:
        return f"{entry.owner} doesn't say where its data are to be had. More: guie data info {entry.name}"
    return f"nothing to fetch, its data come with {entry.owner}. Next: guie data prepare {entry.name}"
