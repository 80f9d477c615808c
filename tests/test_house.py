"""What holds for the whole package: light imports, the public surface, the list of packages."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import layer_surgeon
from layer_surgeon import errors

ROOT = Path(__file__).resolve().parent.parent
# The packages whose names are imported on first use. Their stubs list the names.
LAZY = sorted(stub.parent.name for stub in (ROOT / "layer_surgeon").glob("*/__init__.pyi"))


def modules_after(code, cwd):
    """The names of the top-level modules that a new interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import layer_surgeon", {"torch", "transformers", "numpy", "huggingface_hub", "typer", "rich"}),
        ("import layer_surgeon.assemble", {"torch", "transformers", "numpy", "huggingface_hub"}),
        ("import layer_surgeon.extract", {"torch", "transformers", "numpy", "huggingface_hub"}),
        ("import layer_surgeon.tasks", {"torch", "transformers", "numpy", "huggingface_hub"}),
        ("import layer_surgeon.graft.config, layer_surgeon.finetune.config", {"torch", "transformers"}),
        ("import layer_surgeon.cost, layer_surgeon.hub.layer_card", {"torch", "transformers", "huggingface_hub"}),
        ("import layer_surgeon.hub.push, layer_surgeon.hub.run_card", {"torch", "transformers"}),
        ("from layer_surgeon.finetune import DATASETS", {"torch", "transformers", "datasets"}),
        ("import layer_surgeon_cli.main", {"torch", "transformers", "numpy", "huggingface_hub"}),
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(code, absent, tmp_path):
    loaded = modules_after(code, tmp_path)
    assert "layer_surgeon" in loaded
    assert not absent & loaded


def test_extraction_of_plain_bytes_needs_no_heavy_library(tmp_path):
    from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint

    tiny = LLAMA_8B | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 8}
    write_sparse_checkpoint(tmp_path / "donor", tiny, [1])
    code = "import layer_surgeon as ls; ls.extract_layer('donor', -1, 'out')"
    assert not {"torch", "transformers", "numpy", "huggingface_hub"} & modules_after(code, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["inspect", "model.gguf"], {"torch", "transformers", "numpy", "gguf", "huggingface_hub"}),
        (["extract", "model.gguf", "--output", "layer"], {"torch", "transformers", "huggingface_hub"}),
    ],
)
def test_commands_on_gguf_files_need_no_torch(arguments, absent, tmp_path):
    from tests.support.gguf_models import write_model

    write_model(tmp_path / "model.gguf", "llama", "Q8_0")
    code = (
        "import contextlib, io, layer_surgeon_cli.main as cli\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        f"    cli.app({arguments!r}, standalone_mode=False)\n"
        "assert out.getvalue()"
    )
    assert not absent & modules_after(code, tmp_path)


def test_safetensors_load_no_other_format(tmp_path):
    from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint

    tiny = LLAMA_8B | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 8}
    write_sparse_checkpoint(tmp_path / "donor", tiny, [1])
    code = "import layer_surgeon_cli.main as cli; cli.app(['extract', 'donor', '-o', 'out'], standalone_mode=False)"
    modules = "import sys; print(*[name for name in sys.modules if name.startswith('layer_surgeon.checkpoint.')])"
    output = subprocess.run([sys.executable, "-c", f"{code}\n{modules}"], cwd=tmp_path, capture_output=True, text=True)
    loaded = output.stdout.splitlines()[-1].split()
    assert "layer_surgeon.checkpoint.safetensors" in loaded
    assert not [name for name in loaded if "gguf" in name or "torch" in name]


def test_no_module_is_imported_behind_the_back_of_import_linter():
    """Only the tables of lazy names may name modules of the package as text: other imports are statements."""
    hidden = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "layer_surgeon").rglob("*.py"))
        if path.name != "_auto.py"
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("import_module")
        if isinstance(call.args[0], ast.Constant) and str(call.args[0].value).startswith("layer_surgeon")
    ]
    assert not hidden


def test_the_public_surface():
    assert {"__version__", "extract_layer", "graft_layer", "finetune_model"} <= set(layer_surgeon.__all__)
    packages = [layer_surgeon, *(import_module(f"layer_surgeon.{name}") for name in LAZY)]
    for package in packages:
        assert set(dir(package)) >= set(package.__all__) - {"__version__"}
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="nothing"):
            _ = package.nothing


def test_every_error_is_drawn_and_has_a_builtin_base():
    for name in dir(errors):
        error = getattr(errors, name)
        if isinstance(error, type) and error is not errors.LayerSurgeonError:
            assert issubclass(error, errors.LayerSurgeonError)
            assert f" {name} " in errors.__doc__ or f" {name}\n" in errors.__doc__
            assert any(base.__module__ == "builtins" for base in error.__mro__[1:-3])


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == layer_surgeon.__version__


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for top, name in (("layer_surgeon", "layer_surgeon"), ("cli", "layer_surgeon_cli")):
        folders = {path.parent.relative_to(ROOT / top) for path in (ROOT / top).rglob("__init__.py")}
        expected = {".".join([name, *folder.parts]) for folder in folders}
        listed = {package for package in settings["packages"] if package.partition(".")[0] == name}
        assert listed == expected


def test_nothing_imports_the_research():
    for path in [path for top in ("layer_surgeon", "cli", "benchmarks") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in modules if name.partition(".")[0] == "research"], path


def test_no_file_is_overlong():
    for path in [*ROOT.glob("layer_surgeon/**/*.py"), *ROOT.glob("cli/*.py")]:
        source = path.read_text()
        assert len(source.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                # What a reader has to follow: neither the signature nor the docstring.
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                assert node.end_lineno - body[0].lineno < 60, f"{path}: {node.name}"
