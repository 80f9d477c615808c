"""All that creates, replaces or deletes a file goes through `_io` and `_folders`; exceptions are listed here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

WRITERS = ("_io.py", "_folders.py")
# Methods and functions that write or delete, by their last name; `open`, `save`, `replace` and `rename` are told apart
# below. `TemporaryDirectory` and `TemporaryFile` have random names and clean up after themselves.
WRITES = {
    "write_text",
    "write_bytes",
    "touch",
    "unlink",
    "rmdir",
    "symlink_to",
    "hardlink_to",
    "chmod",
    "rmtree",
    "copy",
    "copy2",
    "copyfile",
    "copytree",
    "move",
    "mkstemp",
    "mkdtemp",
    "NamedTemporaryFile",
    "link",
    "symlink",
    "remove",
    "removedirs",
    "renames",
    "truncate",
    "ftruncate",
    "savefig",
    "save_file",
    "extractall",
    "to_csv",
    "to_json",
    "to_parquet",
}
# Names that mean a file only after one of these: `copy` is of dicts too, `remove` of lists, `replace` of texts.
ONLY_OF = {
    "copy": {"shutil"},
    "remove": {"os"},
    "link": {"os"},
    "symlink": {"os"},
    "truncate": {"os"},
    "move": {"shutil"},
}
# `_io` has functions of these names too.
OURS = {"write_text", "write_bytes"}

ALLOWED = {
    "cli/surgeon_command.py": {"write_text": "of the formatter of help pages, which writes to a text in memory"},
    "layer_surgeon/assemble/assembly.py": {
        "unlink": "weights of a killed run with other shards, in the locked temporary folder"
    },
    "layer_surgeon/extract/copy.py": {
        "os.open": "the growing file of weights: ranges from several threads, in a locked folder without links",
        "ftruncate": "the same file",
    },
    "layer_surgeon/extract/journal.py": {"os.open": "a journal grows by lines, in the same folder"},
    "layer_surgeon/extract/staging.py": {
        "unlink": "the journal and the lock of that folder",
        "rmdir": "parents that were made and are empty",
    },
    "layer_surgeon/finetune/checkpoints.py": {
        "rmtree": "checkpoint-<number> without a state, in the run's locked folder"
    },
    "layer_surgeon/finetune/donor_states.py": {"save_file": "safetensors' own writer, at a path of `new_path`"},
    "layer_surgeon/finetune/folder.py": {
        "rmtree": "final/ of a run that was stopped, in its locked folder",
        "rmdir": "empty folders",
        "replace": "the finished run appears under its name",
    },
    "layer_surgeon/finetune/sharding.py": {"torch.save": "as transformers' Trainer does, into a checkpoint"},
    "layer_surgeon/run/fetching.py": {"rmtree": "a layer that was loaded, in the run's locked folder"},
    "layer_surgeon/run/run_folder.py": {"unlink": "the lock of the finished folder"},
    "layer_surgeon/_workers.py": {"open": "a log grows by lines, in a study's folder or the locked folder of a run"},
    "layer_surgeon/run/state_files.py": {
        "os.open": "the file of kept states, of its final size from the start, in the run's locked folder",
        "ftruncate": "the same file",
        "unlink": "states of a depth that are no longer needed, in the same folder",
    },
    "layer_surgeon/run/shares.py": {"unlink": "the note of a failure of an earlier run, in the run's locked folder"},
    "layer_surgeon/study/compare.py": {
        "unlink": "the plan of a new study whose data can't be read, in its locked folder"
    },
    "layer_surgeon/donor/frozen.py": {"save_file": "safetensors' own writer, at a path of `new_path`"},
    "layer_surgeon/graft/donor_store.py": {"link": "weights into a folder of `new_folder`"},
    "layer_surgeon/graft/export.py": {
        "mkdtemp": "the exporters write several files themselves",
        "rmtree": "that folder",
        "torch.save": "a program, into that folder",
        "replace": "the finished files appear under their names, after a look at what is there",
        "unlink": "NAME.data of an export of ours, with --force",
    },
    "layer_surgeon/report/csv_files.py": {"to_csv": "into a text"},
    "layer_surgeon/report/export.py": {"unlink": "pictures of an earlier report, by their names"},
    "layer_surgeon/study/cells.py": {
        "rmtree": "what a training wrote into runs/, whose paths are checked by `StudyFolder`",
        "unlink": "the note of a failure, after a success",
    },
    "layer_surgeon/study/prepare.py": {
        "unlink": "the note that data are complete, before they are replaced, in the study's locked folder"
    },
    "layer_surgeon/study/estimate.py": {"rmtree": "a training in the folder of a rehearsal"},
    "layer_surgeon/study/executors.py": {"unlink": "the description of a cell that was run"},
    "layer_surgeon/study/preload_server.py": {"os.open": "the same log, in a forked child"},
    "layer_surgeon/study/rehearsal.py": {
        "symlink_to": "links to a study's files, in a temporary folder",
    },
}


def writes_of(source):
    """The kinds of calls in a source text that create, replace or delete files, with their lines."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (kind := kind_of(node)):
            found.setdefault(kind, []).append(node.lineno)
    return found


def kind_of(call):
    function = call.func
    if isinstance(function, ast.Name):
        if function.id == "open":
            return "open" if is_writing(call, 1) else None
        return function.id if function.id in WRITES - OURS and function.id not in ONLY_OF else None
    if not isinstance(function, ast.Attribute):
        return None
    name = function.attr
    owner = function.value.id if isinstance(function.value, ast.Name) else None
    if name == "open":
        if owner == "os":
            return None if "os.O_RDONLY" in ast.unparse(call) else "os.open"
        return "open" if is_writing(call, 1 if owner in ("io", "builtins", "codecs", "gzip") else 0) else None
    if name == "save" and (owner == "torch" or ast.unparse(function.value) == "torch.export"):
        return "torch.save"
    if name in ("replace", "rename"):
        # Of texts, `replace` takes two arguments, of dataclasses keywords; a path takes one.
        return name if owner == "os" or (len(call.args) == 1 and not call.keywords and owner != "dataclasses") else None
    owners = ONLY_OF.get(name)
    return name if name in WRITES and owner != "_io" and (owners is None or owner in owners) else None


def is_writing(call, position):
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[position : position + 1]
    return any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in modes)


def sources():
    paths = [*ROOT.glob("layer_surgeon/**/*.py"), *ROOT.glob("cli/**/*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths if path.name not in WRITERS}


def test_every_write_goes_through_one_place():
    others = {}
    for path, source in sources().items():
        for kind, lines in writes_of(source).items():
            if kind not in ALLOWED.get(path, {}):
                others[f"{path}: {kind}"] = lines
    assert others == {}, "use layer_surgeon._io, or add the place to ALLOWED with its reason"


def test_the_list_has_nothing_that_is_gone():
    files = sources()
    assert all(reason for kinds in ALLOWED.values() for reason in kinds.values())
    assert [
        f"{path}: {kind}" for path, kinds in ALLOWED.items() for kind in kinds if kind not in writes_of(files[path])
    ] == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("open('x', 'w')", "open"),
        ("open('x', mode='ab')", "open"),
        ("path.open('x')", "open"),
        ("path.open('r+b')", "open"),
        ("os.open(path, os.O_RDWR | os.O_CREAT, 0o644)", "os.open"),
        ("os.open(path, flags)", "os.open"),
        ("path.rename(other)", "rename"),
        ("path.write_text('x')", "write_text"),
        ("path.replace(other)", "replace"),
        ("os.replace(a, b)", "replace"),
        ("shutil.copy(a, b)", "copy"),
        ("tempfile.mkstemp()", "mkstemp"),
        ("rmtree(folder)", "rmtree"),
        ("torch.save(state, path)", "torch.save"),
        ("figure.savefig(path)", "savefig"),
    ],
)
def test_the_walk_sees_writes(code, kind):
    assert list(writes_of(code)) == [kind]


@pytest.mark.parametrize(
    "code",
    [
        "open('x')",
        "path.open('rb')",
        "os.open(path, os.O_RDONLY)",
        "text.replace('a', 'b')",
        "replace(config, seed=1)",
        "config.copy()",
        "names.remove('x')",
        "write_text(path, text)",
    ],
)
def test_the_walk_passes_over_what_writes_nothing(code):
    assert writes_of(code) == {}
