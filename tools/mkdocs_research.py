"""A hook of mkdocs: the site also has the pages of research/, which are outside docs/.

Links between docs/ and research/ are relative to the files, so that they work in the repository. On the site both share
one root, and the hook shortens the links accordingly.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = (
    "results.md",
    "plan.md",
    "loudness.md",
    "data.md",
    "dropping.md",
    "reading/*.md",
    "figures/*.svg",
    "*.yaml",
    "**/plans/*.yaml",
    "**/evidence/*.json",
    "measured/*.json",
)


def on_files(files, config):
    """Add the files of research/ to those of docs/."""
    for pattern in PATTERNS:
        for path in sorted((ROOT / "research").glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Make links between docs/ and research/ right for the site."""
    if page.file.src_uri.startswith("research/"):
        return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)
    return markdown.replace("](../research/", "](research/")
