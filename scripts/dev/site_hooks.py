"""What mkdocs does besides: the README is the home page, and links may leave the folder of the docs.

On GitHub a page is read where it lies, so it links to pictures and files of the repository. In the site a picture is
taken along, and a link to another file is its text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation

ROOT = Path(__file__).resolve().parents[2]
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
PICTURES = (".png", ".svg")


def on_files(files: Files, config: Any) -> Files:
    """The home page, which no folder has."""
    text = (ROOT / READMES[config.extra["language"]]).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    files.append(File.generated(config, "index.md", content="".join(lines[:1] + lines[2:])))  # without the languages
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    docs = Path(config.docs_dir).relative_to(ROOT).as_posix()
    place = "." if page.file.src_uri == "index.md" else join(docs, dirname(page.file.src_uri))

    def led(found: re.Match) -> str:
        mark, text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        path = normpath(join(place, path))
        if path.startswith(f"{docs}/"):
            inside = path.removeprefix(f"{docs}/")
        elif mark and path.endswith(PICTURES):
            inside = f"pictures/{Path(path).name}"
            if inside not in files.src_uris:
                files.append(File.generated(config, inside, abs_src_path=str(ROOT / path)))
        else:
            return text
        back = "../" * page.file.src_uri.count("/")
        return f"{mark}[{text}]({back}{inside}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if index % 2 else LINK.sub(led, part) for index, part in enumerate(parts))


def on_nav(nav: Navigation, config: Any, files: Files) -> Navigation:
    """The navigation is written once; its own words are put into the language."""
    names = config.extra.get("sections", {})
    for item in nav.items:
        item.title = names.get(item.title, item.title)
    return nav
