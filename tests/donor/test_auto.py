"""AutoConfig and AutoModel know our models after `import layer_surgeon`, in any order of imports."""

import subprocess
import sys

import pytest

from tests.support.preloaded import run_code
from tests.support.tiny_models import save_artifact, tiny_llama

_LOAD_MODEL = "print(type(AutoModel.from_pretrained(folder)).__name__)"
_LOAD_CONFIG = "print(type(AutoConfig.from_pretrained(folder)).__name__)"
_GRAFT = (
    "from layer_surgeon.graft import GraftedModel, SurgeonGraftConfig; from layer_surgeon.tasks import TASKS; "
    "import transformers; "
    "classes = {task.auto: task.load_model_class() for task in TASKS.values()} | {'AutoModel': GraftedModel}; "
    "table = lambda auto: getattr(transformers, auto)._model_mapping; "
    "print(all(table(auto)[SurgeonGraftConfig] is model for auto, model in classes.items()))"
)


_TOKENIZER = (
    "from layer_surgeon.graft import GraftTokenizer, SurgeonGraftConfig; "
    "from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING, tokenizer_class_from_name; "
    "print(TOKENIZER_MAPPING[SurgeonGraftConfig] is tokenizer_class_from_name('GraftTokenizer') is GraftTokenizer)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_artifact(tiny_llama(), [1], tmp_path_factory.mktemp("layer") / "artifact")


def run_python(code, folder):
    done = run_code(code, folder, cwd=folder, bare=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("imports", "load", "printed"),
    [
        ("import layer_surgeon; from transformers import AutoModel", _LOAD_MODEL, "DonorLayer"),
        ("import layer_surgeon; from transformers import AutoConfig", _LOAD_CONFIG, "SurgeonDonorConfig"),
        ("from transformers import AutoModel; import layer_surgeon", _LOAD_MODEL, "DonorLayer"),
        ("import layer_surgeon.donor.layer; from transformers import AutoModel", _LOAD_MODEL, "DonorLayer"),
        ("import layer_surgeon, transformers.modeling_utils; from transformers import AutoModel", _GRAFT, "True"),
        ("import layer_surgeon.graft.modeling; from transformers import AutoModel", _GRAFT, "True"),
        ("import layer_surgeon; from transformers import AutoTokenizer", _TOKENIZER, "True"),
        ("from transformers import AutoTokenizer; import layer_surgeon", _TOKENIZER, "True"),
        ("import layer_surgeon.graft.graft_tokenizer; from transformers import AutoTokenizer", _TOKENIZER, "True"),
    ],
)
def test_auto_classes_know_our_models(folder, imports, load, printed):
    assert run_python(f"import sys; folder = sys.argv[1]; {imports}; {load}", folder) == [printed]


def test_import_is_light():
    """In a new Python: `run_python` forks one that has imported torch."""
    code = "import sys, layer_surgeon; print(*{'torch', 'transformers', 'numpy'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_watcher_removes_itself(folder):
    code = (
        "import sys, layer_surgeon; count = lambda: sum(type(f).__name__ == '_Watcher' for f in sys.meta_path);"
        "print(count()); from transformers import AutoModel; print(count())"
    )
    assert run_python(code, folder) == ["1", "0"]
