"""`--set SECTION.NAME=VALUE`: the training and graft settings of a study, on the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft.config import GraftConfig

from .errors import UsageError
from .surgeon_command import SurgeonCommand

# The sections of a plan that `--set` can change.
_SECTIONS: dict[str, type[FinetuneConfig] | type[GraftConfig]] = {"finetune": FinetuneConfig, "graft": GraftConfig}
# Settings that a study chooses for each training, and where to change them.
_SET_BY_THE_STUDY = {
    "finetune.seed": "--num-seeds, or `seeds` in the plan",
    "finetune.train_fraction": "`fractions` in the plan",
    "finetune.task": "`task` in the plan",
    "graft.task": "`task` in the plan",
}
KEYS = tuple(
    key
    for section, config in _SECTIONS.items()
    for field in fields(config)
    if (key := f"{section}.{field.name}") not in _SET_BY_THE_STUDY
)

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A training or graft setting, such as finetune.learning_rate=1e-4 or graft.pooling=mean. Repeat it for "
        "several. Overrides the plan. `surgeon finetune --help` and `surgeon graft --help` list the settings.",
    ),
]


class StudyCommand(SurgeonCommand):
    """A command that takes settings with `--set`, and says so if it is called with a flag such as `--learning-rate`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            NoSuchOption: An option is unknown. For the name of a setting, the message says how to set it.
        """
        try:
            return super().parse_args(ctx, args)
        # NoSuchOption is in click or in a private copy of click, depending on typer's version.
        except Exception as error:
            flag = getattr(error, "option_name", None)
            replacement = None if flag is None else _replacement(flag)
            if replacement is not None:
                error.message = f"No such option: {flag}. Use --set {replacement}"  # type: ignore[attr-defined]  # see above
                error.possibilities = None  # type: ignore[attr-defined]  # see above
            raise


def parse_settings(assignments: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Read the values of `--set` as a plan reads them.

    Args:
        assignments: Texts such as `finetune.learning_rate=1e-4`. Of two with the same key, the last one counts.

    Returns:
        The settings by section. Sections without settings are left out.

    Raises:
        UsageError: A text is not KEY=VALUE, a key is unknown, or a value is not YAML.
    """
    from layer_surgeon._yaml import parse_yaml

    settings: dict[str, dict[str, Any]] = {}
    for assignment in assignments or ():
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"--set {assignment}: expected KEY=VALUE, such as finetune.learning_rate=1e-4.")
        _check_key(key)
        section, _, name = key.partition(".")
        try:
            settings.setdefault(section, {})[name] = parse_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {assignment}: the value is not valid YAML ({error}).") from error
    return settings


def check_settings(content: Mapping[str, Any], sections: Sequence[str]) -> None:
    """Check sections of a plan before anything is read or written.

    Raises:
        ConfigError: A setting is unknown, or its value can't be used.
    """
    if "finetune" in sections:
        FinetuneConfig.from_settings(None, content["finetune"])
    if "graft" in sections:
        task = {"task": content["task"]} if "task" in content else {}
        GraftConfig.from_settings(None, {**task, **content["graft"]})


def _check_key(key: str) -> None:
    if key in KEYS:
        return
    if key in _SET_BY_THE_STUDY:
        raise UsageError(f"--set {key}: a study sets this for each training. Use {_SET_BY_THE_STUDY[key]}.")
    section, dot, name = key.partition(".")
    if not dot or section not in _SECTIONS:
        matches = [known for known in KEYS if known.partition(".")[2] in (key, name)]
        matches = matches or get_close_matches(key, KEYS, n=1)
        hint = f"Did you mean {matches[0]}?" if matches else f"The sections are: {', '.join(_SECTIONS)}."
        raise UsageError(f"--set {key}: expected the form SECTION.NAME, with a known section. {hint}")
    matches = get_close_matches(key, KEYS, n=1)
    known = ", ".join(known for known in KEYS if known.startswith(f"{section}."))
    hint = f"Did you mean {matches[0]}?" if matches else f"The settings are: {known}."
    raise UsageError(f"--set {key}: there is no such setting. {hint}")


def _replacement(flag: str) -> str | None:
    """What to write after `--set` instead of a flag such as `--learning-rate`; None if no setting has this name."""
    setting = flag.removeprefix("--").replace("-", "_")
    for key in KEYS:
        name = key.partition(".")[2]
        if setting in (name, f"no_{name}"):
            return f"{key}=false" if setting != name else f"{key}=..."
    return None
