"""The code blocks of README and docs: which of them run, and a process that runs those of all pages.

Each page gets a folder of its own, with the files that its reader is supposed to have. Its blocks run in the order of
the page: commands, Python code (one namespace per page), and the files that blocks with a name in their first line are.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.(?:yaml|csv|jsonl|conll))\b.*\n")
_FILES = ("yaml", "csv", "jsonl", "conll")
_SHELL = ("surgeon", "make", "pip", "python3", "python", "torchrun", "accelerate", "cat", "tensorboard")


class Block(NamedTuple):
    """A block: its kind (`command`, `python`, `file` or `text`), and its text; for a file, `name\\ncontent`."""

    kind: str
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page. Each command is a block of its own; output, drawings and trees are text."""
    for language, body in _BLOCK.findall(page):
        file = _FILE.match(body)
        if language == "python":
            yield Block("python", body)
        elif file is not None:
            content = body if language == "yaml" else body[file.end() :]
            yield Block("file", f"{file[1]}\n{content}")
        elif language == "" and body.split(maxsplit=1)[0] in _SHELL:
            for line in body.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield Block("command", line)
        else:
            assert language not in _FILES, f"a {language} block needs a file name in its first line: {body}"
            yield Block("text", body)


def run_block(block: Block, names: dict[str, object]) -> None:
    """Run a block in the current folder.

    What follows `# ->` in a command's comment is part of its output. Spaces don't matter.

    Raises:
        AssertionError: A command failed, or its output is another; the message has the output.
    """
    import contextlib
    import io

    from typer.testing import CliRunner

    from layer_surgeon_cli.main import app

    if block.kind == "file":
        name, _, content = block.text.partition("\n")
        Path(name).write_text(content)
    elif block.kind == "python":
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, "page", "exec"), names)  # noqa: S102 - our own pages
    else:
        source, _, command = block.text.rpartition("| ")
        stdin = Path(shlex.split(source)[1]).read_text() if source else None
        words = shlex.split(command, comments=True)
        assert words[0] == "surgeon", block.text
        result = CliRunner().invoke(app, words[1:], input=stdin)
        assert result.exit_code == 0, f"{block.text}\n{result.output}"
        _, _, expected = command.partition("# -> ")
        assert " ".join(expected.split()) in " ".join(result.output.split()), f"{block.text}\n{result.output}"


def _load_gguf_tokenizers_once() -> None:
    """Keep the tokenizers of GGUF files in memory: transformers needs 3 s to read Gemma's 262,144 tokens."""
    import copy
    import hashlib

    from layer_surgeon import _checkpoint_tokenizer

    load, loaded = _checkpoint_tokenizer.load_gguf_tokenizer, {}

    def load_once(path: Path, model_type: str) -> object:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest not in loaded:
            loaded[digest] = load(path, model_type)
        return copy.deepcopy(loaded[digest])

    _checkpoint_tokenizer.load_gguf_tokenizer = load_once


def _main() -> None:
    """Run the blocks of {page: [folder, blocks]} on stdin; write {page: message} of those that failed to a file."""
    import gc
    import importlib
    import os
    import time
    import traceback
    import warnings

    import pytest

    from tests.support.blank_charts import MODULES, draw_blank

    warnings.simplefilter("ignore")
    for name in MODULES:
        importlib.import_module(name)
    draw_blank(pytest.MonkeyPatch())
    _load_gguf_tokenizers_once()
    problems: dict[str, str] = {}
    for page, (folder, blocks) in json.load(sys.stdin).items():
        os.chdir(folder)
        names: dict[str, object] = {"__name__": "page"}
        start = time.process_time()
        for kind, text in blocks:
            try:
                run_block(Block(kind, text), names)
            except BaseException:  # noqa: BLE001  # reported, also a SystemExit
                problems[page] = f"{text}\n{traceback.format_exc()}"
                break
        print(f"{page}: {time.process_time() - start:.1f} s", file=sys.stderr)
        Path(sys.argv[1]).write_text(json.dumps(problems))
        names.clear()
        # Each training collects garbage, and would visit again what the pages before it imported.
        gc.collect()
        gc.freeze()


if __name__ == "__main__":
    _main()
