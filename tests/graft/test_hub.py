"""Hosts, donors and grafts in repos of a local Hub. Run in a new process, because HF_ENDPOINT is read at import."""

import json

import pytest
import torch

from layer_surgeon.graft import GraftedModel, save_graft
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import make_inputs
from tests.support.loopback_hub import LoopbackHub
from tests.support.preloaded import run_code

_SCRIPT = """
import json, sys
import torch
import layer_surgeon
from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.graft import GraftedModel, save_graft
from layer_surgeon.workspace import Workspace

artifact = sys.argv[1]
seen, workspace = {}, Workspace()

def attempt(name, act):
    try:
        seen[name] = act()
    except LayerSurgeonError as error:
        seen[name] = f"{type(error).__name__}: {error}"

def graft(host, donor, **settings):
    result = save_graft(host, donor, workspace=workspace, force=True, **settings)
    config = json.loads((result.path / "config.json").read_text())
    return {"folder": result.path.name, "host": config["host"], "donor": config["donor"]}

def logits(repo, **settings):
    model = GraftedModel.from_pretrained(repo, **settings)
    ids = torch.arange(4, 13)[None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()

attempt("graft", lambda: graft("tiny/bert", "tiny/layer"))
attempt("tag", lambda: graft("tiny/bert", artifact, revision="v1"))
attempt("gated", lambda: graft("tiny/gated", artifact))
attempt("gated, other token", lambda: graft("tiny/gated", artifact, token="hf_other"))
attempt("gated with token", lambda: graft("tiny/gated", artifact, token="hf_good"))
attempt("no repo", lambda: graft("tiny/nothing", artifact))
attempt("no revision", lambda: graft("tiny/bert", artifact, revision="v9"))
attempt("no config", lambda: graft("tiny/bare", artifact))
attempt("donor is a model", lambda: graft("tiny/bert", "tiny/llm"))
attempt("no donor repo", lambda: graft("tiny/bert", "tiny/nothing"))
attempt("whole", lambda: logits("tiny/graft"))
attempt("without donor", lambda: logits("tiny/checkpoint"))
attempt("donor named", lambda: logits("tiny/checkpoint", donor="tiny/layer"))
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def hub(host_folder, artifact, tmp_path_factory):
    """The script's output, its Hub, and the logits of the same grafts loaded in this process."""
    folder = tmp_path_factory.mktemp("hub")
    host = host_folder("bert")
    graft = save_graft(host, artifact, output=folder / "graft", workspace=Workspace(folder / "here")).path
    model = GraftedModel.from_pretrained(graft)
    checkpoint = {name: graft / name for name in ("config.json", "model.safetensors")}
    inputs = make_inputs(batch=1)
    inputs["input_ids"][0] = torch.arange(4, 13)
    with LoopbackHub() as server:
        bert = server.add_repo("tiny/bert", host)
        bert.refs["v1"] = bert.refs["main"]
        server.add_repo("tiny/gated", host, gated="manual", accepted={"hf_good"})
        server.add_repo("tiny/bare", {"README.md": "nothing here"})
        server.add_repo("tiny/llm", artifact.parent / "llm")
        server.add_repo("tiny/layer", artifact)
        server.add_repo("tiny/graft", graft)
        server.add_repo("tiny/checkpoint", checkpoint)
        settings = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings["SURGEON_WORKSPACE"] = str(folder / "there")
        strict = "import warnings; warnings.simplefilter('error')\n"
        done = run_code(strict + _SCRIPT, artifact, cwd=folder, env=settings, bare=True)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout), server, model(**inputs).logits.tolist()


def test_a_graft_of_two_repos(hub):
    seen, server, _ = hub
    graft = seen["graft"]
    commit = {name: server.router.repos["models", name].refs["main"] for name in ("tiny/bert", "tiny/layer")}
    assert graft["folder"] == "bert+layer"
    assert graft["host"] == {"name": "tiny/bert", "commit": commit["tiny/bert"], "license": None}
    assert graft["donor"]["repo"] == "tiny/layer"
    assert graft["donor"]["repo_commit"] == commit["tiny/layer"]
    assert seen["tag"]["host"]["commit"] == commit["tiny/bert"]
    read = {request.path.split("?")[0] for request in server.requests if "/tiny/bert/resolve/" in request.path}
    moving = {path for path in read if commit["tiny/bert"] not in path and not path.endswith("/config.json")}
    assert moving == set(), "only the first file is asked for at a branch or tag, which may move"


def test_gated_hosts(hub):
    seen, _, _ = hub
    assert seen["gated with token"]["host"]["name"] == "tiny/gated"
    for name in ("gated", "gated, other token"):
        assert seen[name].startswith("SourceAccessError: The host 'tiny/gated' is gated. Ask for access")


def test_missing_repos_revisions_and_files(hub):
    seen, _, _ = hub
    assert seen["no repo"].startswith(
        "SourceNotFoundError: The host 'tiny/nothing' is neither a local folder nor a repo"
    )
    assert seen["no revision"].startswith("SourceNotFoundError: The host 'tiny/bert' doesn't have this revision")
    assert seen["no config"].startswith("GraftError: The host 'tiny/bare' lacks a file of a transformers model")
    assert seen["no donor repo"].startswith("SourceNotFoundError: The donor 'tiny/nothing' is neither a local folder")


def test_a_language_model_as_donor_is_refused_before_its_weights_are_fetched(hub):
    seen, server, _ = hub
    assert seen["donor is a model"].startswith("ArtifactError: The repo 'tiny/llm' is not a layer artifact.")
    assert "surgeon extract tiny/llm --layer -1" in seen["donor is a model"]
    assert server.count(path="tiny/llm/resolve") > 0
    assert not [
        request.path for request in server.requests if "tiny/llm" in request.path and "safetensors" in request.path
    ]


def test_grafts_in_repos(hub):
    seen, _, logits = hub
    assert seen["whole"] == logits
    assert seen["donor named"] == logits
    # Its sha256 is that of the layer in the workspace: the grafts made before hold it.
    assert seen["without donor"] == logits


def test_no_token_at_the_cdn(hub):
    _, server, _ = hub
    assert not [request.path for request in server.requests if request.server == "cdn" and request.authorized]
