"""Every family that transformers knows, walked as the tool does it: the table and the page say what is true."""

import json

import pytest
import transformers

from tools import generate_families as tool
from tools.families_page import page

TABLE = json.loads(tool.OUTPUT.read_text())
SAME = transformers.__version__ == TABLE["transformers"]
OTHER = f"the table is that of transformers {TABLE['transformers']}"
HOW = "run tools/generate_families.py"


def test_the_page_shows_the_table():
    assert tool.PAGE.read_text() == page(TABLE), HOW
    assert len(TABLE["families"]) >= 45
    assert f"**{len(TABLE['families'])} families are exact**" in tool.PAGE.read_text()


@pytest.mark.skipif(not SAME, reason=OTHER)
def test_the_table_has_every_family_that_transformers_has():
    listed = {name for part in ("families", "refused", "untested") for name in TABLE[part]}
    assert set(tool.text_families()) == listed, HOW


@pytest.mark.slow
@pytest.mark.skipif(not SAME, reason=OTHER)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(TABLE["families"]))
def test_a_family_is_exact(family):
    with tool.time_limit(tool.SECONDS):
        assert tool.examine(family) == TABLE["families"][family], HOW


@pytest.mark.slow
@pytest.mark.skipif(not SAME, reason=OTHER)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted({**TABLE["refused"], **TABLE["untested"]}))
def test_a_family_is_not_served_for_the_reason_that_is_told(family):
    with pytest.raises((tool.RefusedError, tool.UntestedError)) as error, tool.time_limit(tool.SECONDS):
        tool.examine(family)
    part = "refused" if isinstance(error.value, tool.RefusedError) else "untested"
    assert TABLE[part][family] == str(error.value), HOW
