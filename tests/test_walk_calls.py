"""A walk over the package: strangers' models are loaded in one file, and children are started in one other.

A call elsewhere fails a test here, and each exception is listed with its reason.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "layer_surgeon").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])

# What reads a model, a tokenizer, a config or a data set by a name or a folder, and may run code that it brings.
LOADERS = {
    *("from_pretrained", "from_config", "get_config_dict", "get_class_from_dynamic_module", "load_custom_generate"),
    *("pipeline", "load_dataset", "load_dataset_builder"),
}
LOADING = "layer_surgeon/_loading.py"
# Receivers of our own classes, which load through `_loading` or read safetensors and JSON alone.
OURS = {"GraftedModel", "DonorLayer", "DonorStack", "donor_class", "task_class"}
MAY_LOAD = {
    ("layer_surgeon/graft/hosts.py", "loader.from_config"): "with trust_remote_code=False",
    ("layer_surgeon/cost/shapes.py", "auto.from_config"): "with trust_remote_code=False",
    ("layer_surgeon/donor/files.py", "SurgeonDonorConfig.get_config_dict"): "reads a config.json of our own class",
    ("layer_surgeon/donor/tensors.py", "family.from_pretrained"): "given None: weights come as tensors, not from files",
    ("layer_surgeon/graft/graft_tokenizer.py", "cls.from_pretrained"): "our own class, from files that it has written",
    ("layer_surgeon/graft/storage.py", "super().from_pretrained"): "our own class, whose config was checked before",
}

# What starts another program or process, or runs text or bytes as code.
STARTERS = {
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output"),
    *("os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "multiprocessing.Process"),
    *(
        "multiprocessing.get_context",
        "concurrent.futures.ProcessPoolExecutor",
        "ProcessPoolExecutor",
        "exec",
        "eval",
        "compile",
        "__import__",
    ),
    *("pickle.load", "pickle.loads", "torch.load", "runpy.run_path", "runpy.run_module", "webbrowser.open"),
}
PYTHON = "layer_surgeon/_python.py"
MAY_START = {
    ("layer_surgeon/study/preload_server.py", "os.fork"): "a copy of this process, with what it has imported",
}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def calls(path: Path) -> Iterator[tuple[str, str]]:
    """The file's name and, of each call in it, what is called: `os.fork`, `super().from_pretrained`."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func)


@functools.cache
def all_calls() -> list[tuple[str, str]]:
    return [call for path in FILES for call in calls(path)]


def test_strangers_models_are_loaded_in_one_file():
    found = {
        (file, called)
        for file, called in all_calls()
        if called.rpartition(".")[2] in LOADERS and called.rpartition(".")[0] not in OURS and file != LOADING
    }
    # `_loading.load_dataset` is called by its own name.
    found = {(file, called) for file, called in found if called != "load_dataset"}
    assert found - MAY_LOAD.keys() == set()
    assert MAY_LOAD.keys() - found == set(), "an exception that nothing needs"


def test_nobody_imports_a_loader_around_it():
    names = {"load_dataset", "load_dataset_builder"}
    for path in FILES:
        file = path.relative_to(ROOT).as_posix()
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module == "datasets" and file != LOADING:
                assert not names & {alias.name for alias in node.names}, file


def test_every_loader_there_refuses_code():
    tree = ast.parse((ROOT / LOADING).read_text())
    auto = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and "from_pretrained" in ast.unparse(node.func)
    ]
    assert len(auto) == 4
    for call in auto:
        text = ast.unparse(call)
        assert "trust_remote_code=False" in text or "'trust_remote_code': False" in text


def test_models_made_from_a_config_run_no_code():
    made = [
        ast.unparse(node)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {name for _, name in MAY_LOAD if "from_config" in name}
    ]
    assert len(made) == 2
    assert all("trust_remote_code=False" in call for call in made)


def test_children_are_started_in_one_file():
    found = {(file, called) for file, called in all_calls() if called in STARTERS and file != PYTHON}
    assert found - MAY_START.keys() == set()
    assert MAY_START.keys() - found == set(), "an exception that nothing needs"


@pytest.mark.parametrize("name", sorted(name.rpartition(".")[2] for name in STARTERS if "." in name))
def test_nobody_imports_a_starter_by_name(name):
    """`from subprocess import run` would go unseen."""
    modules = {starter.rpartition(".")[0] for starter in STARTERS if "." in starter}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                assert name not in {alias.name for alias in node.names}, path
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name in modules and alias.asname], path
