"""The README is one screen, its links lead somewhere, and the pages that it sends to show what the code says now."""
import re

import pytest
from conftest import REPO, need_sources

need_sources()
make_pages = pytest.importorskip("make_pages")


@pytest.mark.parametrize("name", make_pages.PAGES)
def test_a_page_shows_what_the_code_says(name):
    page, same = make_pages.make_page(name)
    assert len("".join(make_pages.shown(page))) > 1000
    assert same, f"nbs/{name}.ipynb shows what the code said before; run make pages"


def test_the_readme_is_short_and_leads_on():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) <= 900
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in link]
    assert not [link for link in links if not (REPO / link).exists()]
    assert {f"nbs/{name}.ipynb" for name in make_pages.PAGES} | {"CONTRIBUTING.md", "SECURITY.md"} <= set(links)
