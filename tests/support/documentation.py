"""The code blocks of the documentation, and how tests run them.

A block in `sh`, `bash` or `python` is run, in the order of its page, unless an HTML comment right before it gives the
reason why not: `<!-- not run: needs a cluster -->`. `<!-- run with: tiny in place of busi-cpu -->` there replaces a
word. `<!-- blocks run in: a folder with my-data -->` anywhere on a page names the folder where its first block starts;
without it, that is an empty one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

LANGUAGES = ("sh", "bash", "python")
PAGES = ("README.md", "docs/**/*.md")
# Made from the code when the site is built.
GENERATED = ("docs/reference/parameters.md", "docs/reference/commands.md")
EMPTY = "an empty folder"
_START = re.compile(r"<!-- blocks run in: (.+?) -->")
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z", flags=re.DOTALL)
_INSTEAD = re.compile(r"<!-- run with: (\S+) in place of (\S+) -->\s*\Z")
_SECONDS = 300
# Keeps what a block exports, and its folder, for the page's next block.
_KEEP = 'export -p > "$BLOCK_STATE"; printf "cd %q\\n" "$PWD" >> "$BLOCK_STATE"'


@dataclass(frozen=True)
class Block:
    """Code of a page; `reason` says why it is not run, and is None where it is."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None


@dataclass(frozen=True)
class Page:
    name: str
    start: str
    blocks: tuple[Block, ...]

    @property
    def runs(self) -> bool:
        return any(block.reason is None for block in self.blocks)


def pages(project: Path) -> list[Page]:
    """Return the pages that have blocks, by name."""
    files = {file for pattern in PAGES for file in project.glob(pattern)}
    names = sorted(file.relative_to(project).as_posix() for file in files)
    found = [_page(name, (project / name).read_text(encoding="utf-8")) for name in names if name not in GENERATED]
    return [page for page in found if page.blocks]


def _page(name: str, text: str) -> Page:
    blocks, before = [], ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "fence" and token.info.split(" ")[0] in LANGUAGES and token.map:
            reason, instead = _NOT_RUN.search(before), _INSTEAD.search(before)
            code = token.content.replace(instead[2], instead[1]) if instead else token.content
            blocks.append(Block(name, token.map[0] + 1, token.info, code, reason[1] if reason else None))
        before = token.content if token.type == "html_block" else ""
    start = _START.search(text)
    return Page(name, start[1] if start else EMPTY, tuple(blocks))


def run_page(page: Page, folder: Path, state: Path, **variables: str) -> None:
    """Run a page's blocks, each as a process of its own; exported variables and the folder outlive a block.

    What a block started in the background ends with it.

    Args:
        folder: where the first one starts.
        state: file to keep variables and folder in.
        variables: further ones of the environment.
    """
    state.write_text("", encoding="utf-8")
    environment = (
        os.environ
        | variables
        | {
            "BLOCK_STATE": str(state),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
    )
    for block in page.blocks:
        if block.reason is None:
            _run(block, folder, environment, log=state.with_suffix(".log"))


def _run(block: Block, folder: Path, environment: dict[str, str], *, log: Path) -> None:
    code = f"python - <<'END_OF_PYTHON'\n{block.code}\nEND_OF_PYTHON" if block.language == "python" else block.code
    script = f'set -euo pipefail\n. "$BLOCK_STATE"\n{code}\n{_KEEP}\n'
    # Into a file, for a pipe would stay open as long as something in the background does.
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            returned = process.wait(_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    said = log.read_text(encoding="utf-8", errors="replace")
    assert returned == 0, f"{block.page}:{block.line} ended with {returned}:\n{code}\n{said}"
