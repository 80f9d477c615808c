"""An export only deletes and replaces files of an earlier export."""

import pytest

from layer_surgeon.errors import WorkspaceError
from layer_surgeon.graft import export_model, graft_layer
from tests.graft.conftest import host_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")


@pytest.fixture
def stored(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact).save_pretrained(tmp_path / "graft")
    return tmp_path / "graft"


def onnx_file(path, *, made_with="layer_surgeon 0.1.0", location="x.onnx.data"):
    """An ONNX program that names its weights file."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    model.metadata_props.add(key="made_with", value=made_with)
    path.write_bytes(model.SerializeToString())


def test_without_force_the_weights_next_to_it_are_refused(stored, tmp_path):
    (tmp_path / "x.onnx.data").write_text("mine")
    with pytest.raises(
        WorkspaceError, match="x.onnx.data already exists. Replace it with --force, or name another file"
    ):
        export_model(stored, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx.data").read_text() == "mine"


@pytest.mark.parametrize("program", [None, "text", {"made_with": "torch"}, {"location": "other.data"}])
def test_with_force_foreign_weights_stay(program, stored, tmp_path):
    (tmp_path / "x.onnx.data").write_text("mine")
    if program == "text":
        (tmp_path / "x.onnx").write_text("no program")
    elif program is not None:
        onnx_file(tmp_path / "x.onnx", **program)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(WorkspaceError, match="doesn't hold the weights of an export of surgeon in .*Move it"):
        export_model(stored, tmp_path / "x.onnx", force=True)
    assert (tmp_path / "x.onnx.data").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_with_force_own_weights_are_replaced(stored, tmp_path):
    onnx_file(tmp_path / "x.onnx")
    (tmp_path / "x.onnx.data").write_text("old")
    export_model(stored, tmp_path / "x.onnx", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"graft", "x.onnx"}


def test_torch_export_touches_no_other_file(stored, tmp_path):
    (tmp_path / "x.pt2.data").write_text("mine")
    export_model(stored, tmp_path / "x.pt2", format="torch")
    assert (tmp_path / "x.pt2.data").read_text() == "mine"


def test_link_at_the_output_is_not_followed(stored, tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "x.pt2").symlink_to(tmp_path / "other")
    with pytest.raises(WorkspaceError, match="x.pt2 already exists"):
        export_model(stored, tmp_path / "x.pt2", format="torch")
    export_model(stored, tmp_path / "x.pt2", format="torch", force=True)
    assert (tmp_path / "other").read_text() == "mine"
