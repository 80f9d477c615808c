"""Every code block of README and docs that can run offline is run as printed, in order, in one folder per page.

Tiny models stand in for the names on the Hub, on a Hub on loopback. Blocks that other tests run, or that can't run
here, are listed with the reason.
"""

import ast
import csv
import json
import re
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import layer_surgeon
from layer_surgeon._yaml import read_yaml
from layer_surgeon.checkpoint.packaged import FOLDERS, PARTED
from layer_surgeon.graft import GraftConfig, save_graft
from layer_surgeon.study.plan import StudyPlan
from tests.cli.test_three_lines import make_data
from tests.support import page_blocks
from tests.support.gguf_models import write_model
from tests.support.hub_uploads import UploadRouter
from tests.support.loopback_hub import LoopbackHub
from tests.support.page_blocks import Block, blocks_of
from tests.support.preloaded import run_code
from tests.support.tiny_models import cut_artifact, save_quietly

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]}
# Real weights that come as Python packages.
PACKAGED = ("README.md", "docs/quickstart.md")
_PACKAGES = (*FOLDERS["all-MiniLM-L6-v2"].packages, *PARTED["gemma-3-270m"].packages)
HAS_WEIGHTS = all(find_spec(name.replace("-", "_")) for name in _PACKAGES)
STUDY = "trains for many minutes; the tests of studies run the command at small sizes"
REAL = "needs real weights for minutes; .ci/run runs it, and tests/study/test_demo.py with tiny models"
EXPORT = "tests/graft/test_export.py runs these commands"
# What runs elsewhere or not at all: page -> the start of a block -> why.
NOT_RUN = {
    "README.md": {
        "make ": "the tests and the demo themselves",
        "python3 -m venv": "installs the package",
        "pip install": "installs the package",
        "surgeon compare": STUDY,
    },
    "docs/benchmarks.md": {"": "measurements for hours; tests/test_benchmarks.py runs them at small sizes"},
    "docs/commands.md": {"": "a synopsis of each command, generated from its code"},
    "docs/compare.md": dict.fromkeys(("surgeon compare", "surgeon sweep", "surgeon select", "from pathlib"), STUDY),
    "docs/demo.md": {
        "pip install": "installs packages",
        "surgeon demo": REAL,
        "from layer_surgeon.study": REAL,
        **dict.fromkeys(
            ("surgeon assemble", "surgeon finetune gemma-9", "surgeon predict"),
            "what surgeon demo does with real weights",
        ),
        "surgeon graft packaged": "needs the folder of the demo",
    },
    "docs/distributed.md": {"": "needs several processes; tests/finetune/test_distributed.py runs the page"},
    "docs/extract.md": {"": "tests/extract/test_page.py runs the page"},
    "docs/graft.md": dict.fromkeys(
        (
            "import layer_surgeon as ls\nfrom transformers import pipeline\n",
            "import layer_surgeon as ls\nimport torch\n",
            "import layer_surgeon as ls\nfrom layer_surgeon.graft import GraftConfig",
        ),
        "tests/graft/test_graft_docs.py runs the three examples",
    ),
    "docs/index.md": {"python3 -m venv": "installs the package", "source ": "activates it"},
    "docs/quickstart.md": {
        "python3 -m venv": "installs the package",
        "source ": "activates it",
        "surgeon compare": STUDY,
    },
    "docs/select.md": {"surgeon": STUDY},
    "docs/share.md": {"surgeon export": EXPORT},
}
# The tutorial of this page, which tests/finetune/test_tutorial.py runs, except for its first block.
TUTORIAL = ("docs/finetune.md", "### Prepare the data", "## The command")
# Pages with tests of their own.
OTHERS = ("docs/assemble.md", "docs/run.md", "docs/measure.md", "docs/diff.md")
WORDS = (
    "a an the film was is good bad dull very not and plot story end slow text another of in what works broke after "
    "like charm two days never again summarize translate english to german house Peter BRUSSELS EU rejects call"
)


def make_tokenizer():
    """A word tokenizer that suits BERT, T5 and Llama."""
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    vocabulary = {word: index for index, word in enumerate([*names.values(), *WORDS.split()])}
    content = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    content.pre_tokenizer = pre_tokenizers.Whitespace()
    content.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=content,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        eos_token="[SEP]",
        **names,
    )


def make_models(folder):
    """The models that the pages name, tiny: {repo id: folder}. Donors have as many layers as the real ones."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    width = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 512}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    llama = {**common, **width, "bos_token_id": 1, "num_key_value_heads": 1}
    made = {
        "bert": BertModel(BertConfig(**common, **width, num_hidden_layers=2)),
        "t5": T5ForConditionalGeneration(T5Config(**common, **t5)),
        "smollm": LlamaForCausalLM(LlamaConfig(**llama, num_hidden_layers=2)),
        "llama": LlamaForCausalLM(LlamaConfig(**llama, num_hidden_layers=32)),
        "qwen": LlamaForCausalLM(LlamaConfig(**llama, num_hidden_layers=28)),
    }
    for name, model in made.items():
        save_quietly(model, folder / name)
        tokenizer.save_pretrained(folder / name)
    names = {
        "bert-base-uncased": "bert",
        "roberta-base": "bert",
        "sentence-transformers/all-MiniLM-L6-v2": "bert",
        "t5-base": "t5",
        "HuggingFaceTB/SmolLM2-135M": "smollm",
        "meta-llama/Llama-3.1-8B": "llama",
        "Qwen/Qwen2.5-7B": "qwen",
    }
    return {repo_id: folder / name for repo_id, name in names.items()}


def write_reader_files(folder):
    """The tables, texts and the GGUF file that the reader of a page has."""
    texts = ("the film was good", "the plot was dull", "a very good story", "the end was bad")
    rows = [("text", "label"), *zip(texts * 5, ("positive", "negative") * 10, strict=True)]
    for name in ("reviews", "other_reviews", "train", "train-1", "train-2", "test", "mine"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows[1:]]
    (folder / "reviews.jsonl").write_text("".join(lines))
    (folder / "lines.txt").write_text("a good film\na dull plot\n")
    question = {"question": "what was good", "context": "the film was good", "answers": "the film"}
    contexts = [question | {"context": f"the film was good {word}"} for word in WORDS.split()[:4]]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in contexts))
    write_model(folder / "model.gguf", "llama", "Q8_0", block_count=13)


def make_grafts(folder, made):
    """The grafts that docs/finetune.md takes for granted."""
    layer = cut_artifact(made["meta-llama/Llama-3.1-8B"], [31], folder / "layer")
    for name, task in (("my-graft", "text-classification"), ("my-qa-graft", "question-answering")):
        save_graft(made["bert-base-uncased"], layer, config=GraftConfig(task=task), output=folder / name)
    shutil.rmtree(Path("surgery"), ignore_errors=True)


def text_of(page):
    """The part of a page whose blocks are run."""
    text = PAGES[page].read_text()
    if page == TUTORIAL[0]:
        return text[: text.index(TUTORIAL[1])] + text[text.index(TUTORIAL[2]) :]
    return text


def runs(page, block):
    """Whether this module runs a block."""
    text = block.text.strip()
    return block.kind != "text" and page not in OTHERS and not any(map(text.startswith, NOT_RUN.get(page, {})))


@pytest.fixture(scope="module")
def outcome(request, tmp_path_factory):
    """The pages that failed, with the message, from one process for all selected pages."""
    selected = {item.callspec.params.get("page") for item in request.session.items if hasattr(item, "callspec")}
    root = tmp_path_factory.mktemp("pages")
    (root / "files").mkdir()
    write_reader_files(root / "files")
    made = make_models(root / "models")
    jobs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for page in filter(selected.__contains__, PAGES):
            blocks = [block for block in blocks_of(text_of(page)) if runs(page, block)]
            if blocks and (HAS_WEIGHTS or page not in PACKAGED):
                folder = root / page.replace("/", "-")
                shutil.copytree(root / "files", folder)
                jobs[page] = (str(folder), blocks)
                if page == TUTORIAL[0]:
                    make_grafts(folder, made)
    with LoopbackHub() as hub:
        hub.router = UploadRouter(hub, {"hf_good"})
        for repo_id, folder in made.items():
            hub.add_repo(repo_id, folder)
        hub.add_repo("SetFit/sst2", make_data(), kind="datasets")
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_good", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        # As in a shell that a notebook started.
        environment |= {"MPLBACKEND": "module://no_such_package.backend"}
        code = f"import runpy; runpy.run_path({page_blocks.__file__!r}, run_name='__main__')"
        done = run_code(code, root / "problems.json", cwd=root, env=environment, stdin=json.dumps(jobs))
    assert done.returncode == 0, done.stderr[-4000:]
    return jobs, json.loads((root / "problems.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(outcome, page):
    jobs, problems = outcome
    assert page not in problems, problems[page]
    if page in ("README.md", *(f"docs/{name}.md" for name in ("examples", "finetune", "graft", "share", "trainer"))):
        assert len(jobs[page][1]) > 5


def test_each_exception_is_of_a_block_that_exists():
    for page, starts in NOT_RUN.items():
        texts = [block.text.strip() for block in blocks_of(PAGES[page].read_text()) if block.kind != "text"]
        for start in starts:
            assert any(text.startswith(start) for text in texts), f"{page}: no block starts with {start!r}"


def test_kinds_of_blocks():
    page = "```\nsurgeon env  # x\nsurgeon push \\\n  x\n```\n```yaml\n# a.yaml\nb: 1\n```\n```\nsome output\n```\n"
    blocks = list(blocks_of(page))
    assert [block.kind for block in blocks] == ["command", "command", "file", "text"]
    assert blocks[1] == Block("command", "surgeon push    x")
    with pytest.raises(AssertionError, match="a yaml block needs a file name"):
        list(blocks_of("```yaml\nb: 1\n```\n"))


@pytest.mark.parametrize(("page", "file", "arms"), [("compare", "my.yaml", 6), ("studies", "stack.yaml", 3)])
def test_the_plan_of_a_study_is_valid(tmp_path, page, file, arms):
    (plan,) = [block.text for block in blocks_of(PAGES[f"docs/{page}.md"].read_text()) if block.kind == "file"]
    name, _, content = plan.partition("\n")
    (tmp_path / name).write_text(content)
    assert len(StudyPlan.from_dict(read_yaml(tmp_path / file)).arms) == arms


@pytest.mark.real_weights
@pytest.mark.slow
@pytest.mark.skipif(not HAS_WEIGHTS, reason="needs the packages of the [demo] extra")
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads((ROOT / "docs/notebooks/first_graft.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in content["cells"])
    names = {"__name__": "notebook"}
    code = compile("\n".join(cells), "first_graft.ipynb", "exec")
    with pytest.warns(UserWarning, match="the projections were scaled"):
        exec(code, names)  # noqa: S102 - our own notebook
    # The notebook and the tutorial tell their reader to expect 0.88.
    assert 0.8 < names["result"].metrics["test_accuracy"] < 0.95
    assert names["classify"]("What a film.")[0]["label"] in {"negative", "positive"}


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs/reference.md").read_text()
    # The page has the whole module of errors.
    missing = [name for name in layer_surgeon.__all__ if f".{name}\n" not in page and not name.endswith("Error")]
    assert missing == ["__version__"]


def test_quoted_messages_exist():
    """Readers of Troubleshooting search it for the message that they got."""
    rows = [
        line.split("|")[1] for line in PAGES["docs/troubleshooting.md"].read_text().splitlines() if line[:2] == "| "
    ]
    quoted = {part for row in rows for text in re.findall(r'"([^"]+)"', row) for part in text.split("...")}
    sources = (path.read_text() for folder in ("layer_surgeon", "cli") for path in (ROOT / folder).rglob("*.py"))
    texts = [
        node.value
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert "already holds" in quoted
    assert [text for text in quoted if not any(text in message for message in texts)] == []


def test_extras_are_listed_in_readme_and_docs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in ("README.md", "docs/index.md"):
        for extra in extras:
            assert f"`{extra}`" in PAGES[page].read_text(), f"{page} doesn't list the extra {extra}"
    assert len(PAGES["README.md"].read_text().splitlines()) < 120
