"""What mkdocs does beyond its configuration: links that lead out of docs/ work on the site too.

Pages are read in the repository as well, where they link to files beside docs/. On the site a picture or preset comes
along; a page, which would lead to further ones, becomes words.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
OUTWARD = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")
"""A link's text and its path, from the repository's top."""


def comes_along(path: str) -> bool:
    """Whether a file is copied to the site."""
    return not path.endswith(".md")


def on_files(files: Any, config: Any) -> Any:
    """Add what pages link to beside docs/."""
    from mkdocs.structure.files import File

    text = "".join(page.read_text(encoding="utf-8") for page in sorted(Path(config["docs_dir"]).glob("*.md")))
    for path in sorted({path for _, path in OUTWARD.findall(text) if comes_along(path)}):
        files.append(File(path, str(REPOSITORY), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links lead to where their files are on the site."""
    return OUTWARD.sub(_on_site, markdown)


def _on_site(link: re.Match[str]) -> str:
    words, path = link.groups()
    if comes_along(path):
        return f"[{words}]({path})"
    return f"`{path}`" if words == path else f"{words} (`{path}`)"
