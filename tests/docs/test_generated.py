"""The pages of the reference that are made of the code are current."""

from __future__ import annotations

import pytest
from generated import FOLDER, PAGES, page


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_code_does(name: str) -> None:
    said = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert said == page(name), "write it again: python tests/docs/generated.py"
