"""Inspected conversations as one HTML file that needs nothing else."""

from pathlib import Path

from harvest.inspection_sample import Inspection
from harvest.inspection_view import ShownRow, distributions, facts, legend
from shared import storage
from shared.showing.page import render

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, found: Inspection, rows: list[ShownRow]) -> None:
    """Write the page; one that is there is replaced.

    Raises:
        StorageError: it cannot be written.
    """
    page = render(
        _TEMPLATES, "inspection.html",
        found=found, facts=facts(found), distributions=distributions(found), rows=rows, entries=legend(rows),
        title=f"{' + '.join(found.sources)} as {found.model} sees it",
    )
    storage.make_folder(path.parent)
    storage.write_file(path, page.encode())
