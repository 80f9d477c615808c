"""The tiny layer artifact of the graft's tests."""

from tests.graft.conftest import _no_bars, artifact, llm

__all__ = ["_no_bars", "artifact", "llm"]
