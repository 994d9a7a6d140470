"""The site in a real browser: `make browse`.

    python tests/docs/browser.py build/site [--pictures docs/pictures]

Every link leads to a page and a place in it; those to other sites are listed and not followed. No page asks
for anything from elsewhere, reports an error, or is wider than a phone. The search finds.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from playwright.sync_api import Browser, Page, Route, sync_playwright

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
QUERIES = {"antithetic": "objectives.html", "perturb_": "api/ops.html", "PCRE2": "build.html"}
# Of a page, but for what scrolls within it; the theme lets all of .content scroll before the page does.
WIDTH = "Math.max(...[...document.querySelectorAll('html, .content')].map(each => each.scrollWidth))"
PICTURES = {
    "site_desktop": ("index.html", DESKTOP),
    "site_phone": ("recipe.html", PHONE),
}


class Parsed(HTMLParser):
    """Links of a page, and the places in it that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name == "id":
                self.places.add(value)


def dead_links(site: Path) -> tuple[list[str], set[str]]:
    """Links within the site that lead nowhere, and the addresses outside of it."""
    pages = {
        page.relative_to(site).as_posix(): Parsed(page.read_text("utf-8")) for page in site.rglob("*.html")
    }
    dead, outside = [], set()
    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme in ("http", "https"):
                outside.add(urldefrag(link).url)
            elif not urlsplit(link).scheme:
                there = urlsplit(urljoin(f"/{name}", link))
                target, place = unquote(there.path).lstrip("/"), unquote(there.fragment)
                if not (site / target).is_file():
                    dead.append(f"{name}: {link}")
                elif place and target in pages and place not in pages[target].places:
                    dead.append(f"{name}: {link} (no such place)")
    return dead, outside


def serve(site: Path) -> tuple[ThreadingHTTPServer, str]:
    """The folder on a free port of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def watched(browser: Browser, home: str, problems: list[str], size: dict[str, int]) -> Page:
    """A page of the browser that gets nothing from elsewhere and notes what goes wrong."""
    page = browser.new_page(viewport=size)

    def local(route: Route) -> None:
        if route.request.url.startswith((home, "data:")):
            route.continue_()
        else:
            problems.append(f"{page.url} asks for {route.request.url}")
            route.abort()

    page.route("**/*", local)
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on("response", lambda got: got.ok or problems.append(f"{page.url}: {got.status} for {got.url}"))
    return page


def check_width(page: Page, home: str, site: Path, problems: list[str]) -> int:
    """Every page at the width of a phone; returns how many there are."""
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    for name in names:
        page.goto(f"{home}/{name}", wait_until="load")
        wide = page.evaluate(WIDTH)
        if wide > PHONE["width"]:
            problems.append(f"{name} is {wide} pixels wide on a phone of {PHONE['width']}")
    return len(names)


def check_search(page: Page, home: str, problems: list[str]) -> None:
    """A query typed into the box of the first page gives results, the expected one among them."""
    for query, expected in QUERIES.items():
        page.goto(f"{home}/index.html")
        page.fill("input[name=q]", query)
        page.press("input[name=q]", "Enter")
        page.wait_for_selector("#search-results ul.search li a", timeout=15_000)
        page.wait_for_function("!document.querySelector('#search-progress')?.innerText.endsWith('...')")
        found = page.eval_on_selector_all(
            "#search-results ul.search li > a", "links => links.map(link => link.href)"
        )
        if not any(urldefrag(urlsplit(link).path).url == f"/{expected}" for link in found):
            problems.append(f"search for {query!r}: expected {expected} among {len(found)} results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    options = parser.parse_args()
    problems, outside = dead_links(options.site)
    server, home = serve(options.site)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        count = check_width(watched(browser, home, problems, PHONE), home, options.site, problems)
        check_search(watched(browser, home, problems, DESKTOP), home, problems)
        for name, (there, size) in PICTURES.items() if options.pictures else ():
            page = watched(browser, home, problems, size)
            page.goto(f"{home}/{there}")
            page.screenshot(path=options.pictures / f"{name}.png")
        browser.close()
    server.shutdown()
    print(f"{len(outside)} addresses of other sites:", *sorted(outside), sep="\n  ")
    print(*problems, sep="\n")
    print(f"{count} pages, {len(QUERIES)} searches, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
