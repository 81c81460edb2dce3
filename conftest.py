"""Lets the tests that Pants runs import from .venv: everything but pytest and guie itself."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def _use_venv(venv: Path) -> None:
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    if not site_packages.is_dir():
        sys.exit(f"guie is tested in {venv}, which is not there. This makes it: ./setup")
    # Pants links large files to its store, and touches them there: guie would take that for changed data.
    for linked in (path for path in Path(__file__).parent.glob("packages/*/src/**/*") if path.stat().st_nlink > 1):
        if linked.is_file():
            own = linked.with_name(f"{linked.name}.own")
            shutil.copyfile(linked, own)
            own.replace(linked)
    # Bare, without the .pth files of the editable installs: guie's own code must come from the sandbox.
    sys.path[:0] = [str(source) for source in sorted(Path(__file__).parent.glob("packages/*/src"))]
    sys.path.append(str(site_packages))
    # the tests' own processes run as they would outside
    sys.executable = f"{venv}/bin/python"
    os.environ["PATH"] = os.pathsep.join([f"{venv}/bin", os.environ.get("PATH", os.defpath)])
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)


if "GUIE_VENV" in os.environ and Path(sys.prefix) != Path(os.environ["GUIE_VENV"]):
    _use_venv(Path(os.environ["GUIE_VENV"]))
