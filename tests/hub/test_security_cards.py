"""Untrusted names, labels and licences are plain text in model cards."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import constants
from markdown_it import MarkdownIt

from layer_surgeon._text import code, markdown
from layer_surgeon.graft import graft_layer
from layer_surgeon.hub.published import published_files
from tests.graft.conftest import host_model
from tests.support.command_line import surgeon_here

HOSTILE = "x](http://evil) <img src=x onerror=alert(1)> **b** `c` | cell\n\n# Head\n```\n---\nlicense: mit\n---"


def tags(text):
    """The HTML tags of a rendered card."""
    body = text.split("\n---\n", 1)[1]
    return re.findall(r"<(\w+)", MarkdownIt("gfm-like", {"linkify": False}).render(body))


@pytest.fixture
def harmless(artifact, tmp_path):
    return save(artifact, tmp_path / "harmless", "name")


def save(artifact, folder, text):
    model = graft_layer(host_model("bert"), artifact, id2label={0: text, 1: "good"})
    model.config.host = {"name": text, "commit": text, "license": text}
    model.config.donor = {**model.config.donor, "name": text, "base_model": text, "commit": text, "license": text}
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_names_dont_change_the_markup_of_a_card(artifact, harmless, tmp_path):
    hostile = save(artifact, tmp_path / "hostile", HOSTILE)
    assert tags(hostile) == tags(harmless)
    front = yaml.safe_load(hostile.split("---\n")[1])
    assert "\n" not in front["license"]
    assert "base_model" not in front


URL = "https://me:hunter2@example.org/model?sig=abc123"


def test_stored_graft_has_no_passwords(artifact, tmp_path):
    layer = shutil.copytree(artifact, tmp_path / "layer")
    config = json.loads((layer / "config.json").read_text())
    config["source"]["name"] = URL  # as versions before wrote it
    (layer / "config.json").write_text(json.dumps(config))
    host = host_model("bert")
    host.name_or_path = URL
    graft_layer(host, layer).save_pretrained(tmp_path / "graft")
    config = json.loads((tmp_path / "graft/config.json").read_text())
    card = (tmp_path / "graft/README.md").read_text()
    for text in (json.dumps(config["host"]), json.dumps(config["donor"]), card):
        assert "example.org/model" in text
        assert "hunter2" not in text
        assert "abc123" not in text
    for content in published_files(tmp_path / "graft", "me/graft").values():
        text = content if isinstance(content, bytes) else content.read_bytes()
        assert b"hunter2" not in text
        assert b"abc123" not in text


@pytest.mark.parametrize(
    "command",
    [
        ("graft", "bert", "--donor", URL),
        ("graft", URL, "--donor", "layer"),
        ("finetune", URL, "--dataset", "rows.csv"),
        ("finetune", "graft", "--dataset", "rows.csv", "--donor", URL),
        ("finetune", "bert", "--dataset", "rows.csv", "--tokenizer", URL),
        ("evaluate", "graft", "--dataset", "rows.csv", "--donor", URL),
    ],
    ids=lambda command: " ".join(part for part in command if part != URL),
)
def test_errors_and_notices_have_no_passwords(command, host_folder, artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(host_folder("bert"), tmp_path / "bert")
    shutil.copytree(artifact, tmp_path / "layer")
    shutil.copytree(host_folder("bert"), tmp_path / "graft")
    graft_layer(tmp_path / "bert", artifact).save_pretrained(tmp_path / "graft")
    shutil.rmtree(tmp_path / "graft/donor")
    (tmp_path / "rows.csv").write_text("text,label\n" + "a film,0\nthe plot,1\n" * 8)
    result = surgeon_here(*command, "--json", cwd=tmp_path)
    assert result.code in (1, 2), result.err
    assert "Traceback" not in result.err
    assert "example.org/model" in "".join((result.out + result.err).split())
    for text in (result.out, result.err):
        assert "hunter2" not in "".join(text.split())
        assert "abc123" not in "".join(text.split())


@pytest.mark.parametrize("text", ["a`b", "``", "`", "a``b```c", "plain"])
def test_code_is_one_span(text):
    html = MarkdownIt().renderInline(f"before {code(text)} behind")
    assert html == f"before <code>{text}</code> behind"


def test_markdown_is_shown_as_it_is():
    assert (
        MarkdownIt("gfm-like", {"linkify": False}).renderInline(markdown("my_model *x* [y](z)"))
        == "my_model *x* [y](z)"
    )
