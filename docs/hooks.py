"""What mkdocs does beyond its settings: pages from outside of docs/, links that work everywhere, guides that the menu does not name.

Pages are written for GitHub: links name files of the repository. Of these files some are pages of the site, at other places; the others are
not there, and links to them go to GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/deltapack/deltapack"
GUIDES = "Guides"

MOVED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "readme.md",
    "SECURITY.md": "reporting.md",
    "spec/README.md": "spec/index.md",
}
"""Places in the site, by those in the repository; other pages of spec/ keep theirs, those of docs/ lose the folder."""
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s#]*)(#[^)\s]*)?(\))")


def place_of(path: str) -> str | None:
    """Return where a file of the repository is in the site; None where it is not."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    if (path.startswith("spec/") and path.endswith(".md")) or re.fullmatch(r"benchmarks/results/[\w-]+\.svg", path):
        return path
    return None


def source_of(place: str) -> str:
    """Return the file of the repository that a page of the site is made of."""
    back = {to: path for path, to in MOVED.items()}
    return back.get(place) or (place if place.startswith(("spec/", "benchmarks/")) else f"docs/{place}")


def relinked(text: str, place: str, root: Path = ROOT) -> str:
    """Return a page with links that work from its place in the site."""
    folder = posixpath.dirname(source_of(place))

    def renewed(link: re.Match[str]) -> str:
        target = link[2]
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        found = place_of("spec/README.md" if path == "spec" else path)
        if found is not None and (root / path).exists():
            new = posixpath.relpath(found, posixpath.dirname(place) or ".")
        elif (root / path).exists():
            new = f"{GITHUB}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}"
        else:
            new = target  # mkdocs says that it is not there
        return f"{link[1]}{new}{link[3] or ''}{link[4]}"

    # Code is no prose: what looks like a link in it stays.
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.M | re.S)
    return "".join(part if number % 2 else _LINK.sub(renewed, part) for number, part in enumerate(parts))


def on_config(config: Any) -> Any:
    """Put pages of docs/ that the menu does not name at the end of its guides."""
    named = set(re.findall(r"[\w/-]+\.md", str(config["nav"])))
    others = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in named]
    for entry in config["nav"]:
        if GUIDES in entry:
            entry[GUIDES] += others
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside of docs/."""
    from mkdocs.structure.files import File  # here, so that what is above can be tested without it

    outside = [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "README.md",
        *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "spec").rglob("*.md"))),
    ]
    outside += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "benchmarks" / "results").glob("*.svg"))]
    for path in outside:
        place = place_of(path)
        assert place is not None
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Renew the links of a page."""
    return relinked(markdown, page.file.src_uri)
