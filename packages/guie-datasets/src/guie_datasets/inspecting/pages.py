"""Pages that guie writes: one HTML file each, self-contained, readable in light and dark, of one style.

A page is a template that extends `page.html`, which stands in the folder `page` beside this file with `style.css`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie_core.files import atomic_write
from guie_core.wording import plural, size

if TYPE_CHECKING:
    import jinja2


def write_page(
    path: str | os.PathLike[str],
    template: str,
    *,
    package: str = "",
    made_by: str = "guie",
    filters: Mapping[str, Callable[..., str]] | None = None,
    **fields: Any,
) -> Path:
    """Fill the template of that name and write the page to `path`, which is returned.

    The template is a file of the package `package`, or one of this package's own.

    made_by: the command, which the page names in its head, so that the same command may replace it.

    Everything that `fields` hold is escaped, unless the template says otherwise. `filters` come on top of "count"
    (1,234), "percent" (12.3 %), "bytes" (1.5 GB) and "plural" (2 images).

    Raises GuieError if the disk is full or not writable.
    """
    environment = _environment(package).overlay()
    environment.filters = {**environment.filters, **(filters or {})}
    text = environment.get_template(template).render(made_by=made_by, **fields)
    with atomic_write(path, "w") as file:
        file.write(text)
    return Path(path)


def percent(share: float) -> str:
    """A share as people read it: "12.3 %", "0.04 %", "100 %"."""
    value = 100 * share
    if value in (0, 100) or abs(value) >= 99.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


@lru_cache
def _environment(package: str) -> jinja2.Environment:
    import jinja2

    def source(name: str) -> str | None:
        for folder in ([files(package)] if package else []) + [files("guie_datasets.inspecting") / "page"]:
            if (file := folder / name).is_file():
                return file.read_text(encoding="utf-8")
        return None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": "{:,}".format, "percent": percent, "bytes": size, "plural": plural}
    return environment
