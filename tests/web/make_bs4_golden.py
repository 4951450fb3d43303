"""Writes tests/web/pages/*.bs4: the article's text of each fixture, with bs4 4.11.2 and Python 3.11.2 of Debian 12.

With arguments IN OUT it does one page; the tests' committed goldens come from a run without arguments."""
import pathlib
import sys

import bs4


def text_of(page):
    charset = "cp1252" if b"windows-1252" in page else "utf-8"
    return bs4.BeautifulSoup(page.decode(charset), "html.parser").get_text().replace("  ", "")


if len(sys.argv) == 3:
    pathlib.Path(sys.argv[2]).write_bytes(text_of(pathlib.Path(sys.argv[1]).read_bytes()).encode("utf-8", "replace"))
else:
    assert bs4.__version__ == "4.11.2", bs4.__version__
    for page in sorted((pathlib.Path(__file__).parent / "pages").glob("*.html")):
        page.with_suffix(".bs4").write_bytes(text_of(page.read_bytes()).encode())
