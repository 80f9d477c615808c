"""The table and the page of families agree with the tool for every family in transformers."""

import json

import pytest
import transformers

from tools import generate_families as tool
from tools.families_page import page

TABLE = json.loads(tool.OUTPUT.read_text())
SAME_VERSION = transformers.__version__ == TABLE["transformers"]
OTHER_VERSION = f"the table was made with transformers {TABLE['transformers']}"
HOW_TO_UPDATE = "run tools/generate_families.py"


def test_page_shows_the_table():
    assert tool.PAGE.read_text() == page(TABLE), HOW_TO_UPDATE
    assert len(TABLE["families"]) >= 45
    assert f"**{len(TABLE['families'])} families are exact**" in tool.PAGE.read_text()


@pytest.mark.skipif(not SAME_VERSION, reason=OTHER_VERSION)
def test_table_has_every_family_of_transformers():
    listed_families = {name for section in ("families", "refused", "untested") for name in TABLE[section]}
    assert set(tool.text_families()) == listed_families, HOW_TO_UPDATE


def test_stacks_of_most_families_are_exact():
    """`test_family_is_exact` compares them at each depth, and the names with those that act before layer 0."""
    records = TABLE["families"].values()
    with_embeddings = [record for record in records if "embeddings" in record]
    assert len(with_embeddings) >= 130
    assert all(record["embeddings"] and "token_table" in record for record in with_embeddings)
    assert all("embeddings_refused" in record for record in records if "embeddings" not in record)


@pytest.mark.slow
@pytest.mark.skipif(not SAME_VERSION, reason=OTHER_VERSION)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(TABLE["families"]))
def test_family_is_exact(family):
    with tool.time_limit(tool.SECONDS):
        assert tool.examine(family) == TABLE["families"][family], HOW_TO_UPDATE


@pytest.mark.slow
@pytest.mark.skipif(not SAME_VERSION, reason=OTHER_VERSION)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted({**TABLE["refused"], **TABLE["untested"]}))
def test_family_is_refused_with_the_listed_reason(family):
    with pytest.raises((tool.RefusedError, tool.UntestedError)) as error, tool.time_limit(tool.SECONDS):
        tool.examine(family)
    section = "refused" if isinstance(error.value, tool.RefusedError) else "untested"
    assert TABLE[section][family] == str(error.value), HOW_TO_UPDATE
