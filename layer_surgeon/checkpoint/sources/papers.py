"""The names of model cards and licence files."""

from fnmatch import fnmatchcase

README_FILE = "README.md"
# Names of the files that must accompany the weights, as patterns of `fnmatch` for upper and lower case. Llama has
# LICENSE and USE_POLICY.md.
LICENCE_FILES = tuple(
    "".join(f"[{letter}{letter.lower()}]" if letter.isalpha() else letter for letter in name) + ending
    for name in ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
    for ending in ("", "[._-]*")
)


def is_licence_file(name: str) -> bool:
    """Whether a file in the top folder of a checkpoint is a licence, by its name."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in LICENCE_FILES)
