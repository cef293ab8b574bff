"""Updates the results blocks in README.md and the docs from the results files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specgym.scripts.common import main, say


@dataclass(frozen=True)
class UpdatePagesOptions:
    """Rewrites the results blocks of pages from the results files that they name."""

    pages: tuple[Path, ...] = (
        Path("README.md"),
        *(Path("docs", f"{name}.md") for name in ("comparison", "drafts", "latency", "learning")),
    )
    """pages to update"""


def update_pages(options: UpdatePagesOptions) -> int:
    """Updates the pages; returns the exit status."""
    from specgym.controllers.evaluation.results.pages import update

    for page in options.pages:
        update(page)
        say(f"{page} is up to date.")
    return 0


if __name__ == "__main__":
    main(update_pages)
