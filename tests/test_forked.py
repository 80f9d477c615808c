"""A forked process has the settings of its own environment, as a new one has that imports everything itself."""

import json

from tests.support.preloaded import MADE_UP, run_code

CODE = """
import json, os, sys
from pathlib import PurePath
import layer_surgeon.finetune.trainer, layer_surgeon_cli.main, transformers.pipelines
from huggingface_hub import HfFileSystem, constants, hf_api

texts = (os.environ["HF_HOME"], os.environ.get("HF_ENDPOINT", constants._HF_DEFAULT_ENDPOINT), *sys.argv[1:])
found = {
    f"{module.__name__}.{name}": str(value)
    for module in list(sys.modules.values())
    if module.__name__.split(".")[0] in ("accelerate", "datasets", "huggingface_hub", "layer_surgeon", "transformers")
    for name, value in list(vars(module).items())
    if isinstance(value, (str, PurePath)) and any(text in str(value) for text in texts)
}
found |= {name: value for name, value in vars(constants).items() if isinstance(value, bool)}
found["hosts"] = sorted(constants.HF_URL_HOSTS)
found["endpoints"] = [hf_api.api.endpoint, hf_api.HfApi().endpoint, HfFileSystem().endpoint]
print(json.dumps(found))
"""


def settings(tmp_path, env, **how):
    done = run_code(CODE, *MADE_UP.values(), cwd=tmp_path, env=env, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_settings_are_those_of_a_process_that_imports_everything_itself(tmp_path):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "1"}
    forked, bare = settings(tmp_path, env), settings(tmp_path, env, bare=True)
    assert bare.keys() <= forked.keys()
    assert {name: forked[name] for name in bare} == bare
    assert not any(made_up in json.dumps(forked) for made_up in MADE_UP.values())
    assert forked["endpoints"] == ["http://127.0.0.1:9"] * 3


def test_without_settings_the_hub_is_the_real_one(tmp_path):
    forked = settings(tmp_path, {})
    assert forked["endpoints"] == ["https://huggingface.co"] * 3
    assert forked["huggingface_hub.constants.HF_HOME"] == str(tmp_path / ".hf")
    assert not forked["HF_HUB_OFFLINE"]
    assert not any(made_up in json.dumps(forked) for made_up in MADE_UP.values())
