"""Put the pages that Zensical has built into the site as those of this version, for ./launch/docs.sh.

The site has one folder a version (`0.1/`), `latest` for the newest, and `versions.json`, which each page's
selector reads, laid out as by mike: https://github.com/jimporter/mike. Other versions that it holds stay.
"""

import json
import re
import shutil
from pathlib import Path

from packaging.version import Version

import inti_jax

_ROOT = Path(__file__).parents[1]
# It names an icon, for which a browser would ask otherwise.
_INDEX = """<!doctype html><title>inti_jax</title><link rel="icon" href="data:,">
<meta http-equiv="refresh" content="0; url=latest/">
"""


def add(pages: Path, site: Path, version: str) -> None:
    """Move `pages` into `site` as those of `version`, and list all versions there."""
    site.mkdir(exist_ok=True)
    shutil.rmtree(site / version, ignore_errors=True)
    shutil.move(pages, site / version)
    found = [path.name for path in site.iterdir() if re.fullmatch(r"\d+\.\d+", path.name)]
    newest, *others = sorted(found, key=Version, reverse=True)
    (site / "latest").unlink(missing_ok=True)
    (site / "latest").symlink_to(newest)
    listed = [{"version": newest, "title": newest, "aliases": ["latest"]}]
    listed += [{"version": other, "title": other, "aliases": []} for other in others]
    (site / "versions.json").write_text(json.dumps(listed, indent=2) + "\n")
    (site / "index.html").write_text(_INDEX)


if __name__ == "__main__":
    major, minor, _ = inti_jax.__version__.split(".", 2)
    add(_ROOT / "build" / "site", _ROOT / "site", f"{major}.{minor}")
