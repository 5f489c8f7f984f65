"""Tables of a page: found by their markers, and filled with what their functions yield.

A table stands between two markers. The first names its function, and the JSON file in docs/, if the function reads any:

    <!-- table: bench bench_train.json -->
    …
    <!-- /table -->

A function yields rows of cells, the head first, or a text, which is written as it is. Cells at the end of a row that it
leaves out are written by hand in the page, and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARKED = re.compile(r"<!-- table: ([^\n]+) -->\n(.*?)<!-- /table -->", flags=re.DOTALL)
OPENED = "<!-- table: "
MISSING = "–"

Cells = tuple[str, ...]
Lines = Iterator[Cells | str]
Tables = Mapping[str, Callable[..., Lines]]


def read(name: str) -> Any:
    """Return the content of a JSON file in docs/."""
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def contents(page: str) -> list[tuple[str, str]]:
    """Return names and contents of the tables of a page.

    :raises ValueError: if a table has no end
    """
    found = MARKED.findall(page)
    if page.count(OPENED) != len(found):
        raise ValueError(f"one of the tables {[name for name, _ in found]} has no `<!-- /table -->`")
    return found


def filled(page: str, tables: Tables) -> str:
    """Return a page with all its tables written anew.

    :param tables: functions by name
    :raises ValueError: if a function is missing, or cells that are written by hand
    """

    def fill(match: re.Match[str]) -> str:
        name, *file = match[1].split()
        if name not in tables:
            raise ValueError(f"there is no table {name}")
        lines = markdown(tables[name](*file), match[2])
        return f"{OPENED}{match[1]} -->\n" + "".join(f"{line}\n" for line in lines) + "<!-- /table -->"

    return MARKED.sub(fill, page)


def markdown(lines: Iterable[Cells | str], present: str = "") -> Iterator[str]:
    """Write rows and texts as lines of Markdown.

    :param present: the table as it stands in the page, for the cells that are written by hand
    :raises ValueError: if a row has too few cells, there too
    """
    by_hand = {cells[0]: cells for cells in map(_cells, present.splitlines())}
    head: Cells = ()
    text = False
    for line in lines:
        if isinstance(line, str):
            if head:  # a text does not begin right below a table
                yield ""
            yield line.rstrip("\n")
            head, text = (), True
            continue
        if text:  # a table does not begin right below a line of text
            yield ""
            text = False
        cells = (*line, *by_hand.get(line[0], ())[len(line) :])
        if head and len(cells) != len(head):
            raise ValueError(f"the row {line[0]} needs {len(head)} cells and has {len(cells)}: write it by hand first")
        yield f"| {' | '.join(cells)} |"
        if not head:
            head = cells
            yield "|---" * len(cells) + "|"


def _cells(line: str) -> Cells:
    return tuple(line.removeprefix("| ").removesuffix(" |").split(" | "))
