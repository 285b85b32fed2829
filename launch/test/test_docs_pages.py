from pathlib import Path

import pytest

from niaf_bringup.docs_pages import pages

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_pages_are_up_to_date(name):
    assert (DOCS / name).read_text() == pages()[name], (
        f"docs/{name} is stale: run `python -m niaf_bringup.docs_pages docs`"
    )
