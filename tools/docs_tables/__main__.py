"""Write all tables of the README and the docs: `make docs-tables`.

    PYTHONPATH=tools python -m docs_tables [--check]

With `--check` nothing is written: the names of stale tables are printed, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs_tables import code, results, speed
from docs_tables.pages import DOCS, ROOT, Tables, contents, filled

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TABLES: Tables = {table.__name__: table for table in (*results.TABLES, *speed.TABLES, *code.TABLES)}


def update(page: Path, *, check: bool) -> list[str]:
    """Write the tables of a page anew, unless `check`, and return the names of those that were stale."""
    before = page.read_text(encoding="utf-8")
    try:
        present, after = contents(before), filled(before, TABLES)
    except ValueError as error:
        sys.exit(f"{page.name}: {error}")
    if after != before and not check:
        page.write_text(after, encoding="utf-8")
    pairs = zip(present, contents(after), strict=True)
    return [name for (name, old), (_, new) in pairs if old != new]


def main(arguments: list[str], pages: list[Path] = PAGES) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a table is stale")
    check = parser.parse_args(arguments).check
    found = {page: names for page in pages if (names := update(page, check=check))}
    for page, names in found.items():
        print(f"{page.name}: {', '.join(names)}", "is stale" if check else "written")
    if found and check:
        print("`make docs-tables` writes them anew")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
