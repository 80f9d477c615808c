"""The presets: plans for every table and figure of the paper (PiFi, ACL 2025), and for the demo."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from layer_surgeon._yaml import read_yaml
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.plan_parts import listed, mapping

Scale = Literal["full", "small"]
# Settings that run offline on two cores: real weights from Python packages, and the sentences of this package.
_SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "host": "packaged:all-MiniLM-L6-v2",
        "donor": {"source": "packaged:gemma-3-270m", "layer": -1},
        "arms": ["host", "graft"],
        "data": ["sentences-imdb"],
        "seeds": [2023, 2024, 2025],
        "finetune": {},
    }
)
_REPLACED = ("host", "hosts", "donor", "donors", "data", "seeds", "finetune", "layers", "focus")


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets: the demo, then tables and figures, sorted by number."""

    def rank(name: str) -> tuple[int, int, str]:
        kind, number = (*name.split("-"), "0")[:2]
        return ("demo", "table", "figure").index(kind), int(number), name

    return tuple(sorted((path.stem for path in _folder().glob("*.yaml")), key=rank))


def preset(name: str, scale: Scale = "full") -> dict[str, Any]:
    """Return the content of a preset, for `StudyPlan.from_dict`.

    If the preset is measured without training, its `kind` is "profile".

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in preset_names():
        close_names = get_close_matches(name, preset_names(), n=1)
        hint = f"Did you mean {close_names[0]}?" if close_names else f"The presets are: {', '.join(preset_names())}."
        raise ConfigError(f"There is no preset {name!r}. {hint}")
    content = read_yaml(_folder() / f"{name}.yaml")
    small = content.pop("small", None)
    content["name"] = name
    if scale == "small":
        # "same": the preset itself runs offline on two cores.
        content = content if small == "same" else scale_down(content, small)
        content["name"] = f"{name}-small"
    return content


def scale_down(content: Mapping[str, Any], small: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a plan with models and data that work offline, and with the settings of `small` on top."""
    kept = {key: value for key, value in content.items() if key not in _REPLACED}
    if not all(isinstance(arm, str) for arm in listed(content, "arms", ["host"])):
        # Custom arms name models on the Hub; `small` has arms that work offline.
        kept.pop("arms")
    scaled = {**_SMALL, **kept, **mapping({"small": small}, "small")}
    if "donors" in scaled:
        scaled.pop("donor")
    return scaled


def profile_commands(content: Mapping[str, Any]) -> list[str]:
    """Return the commands of a preset that is measured without training.

    They combine each host with the first donor, and the first host with each donor. These are the rows of the paper.
    """
    hosts = content.get("hosts") or [content["host"]]
    donors = [donor["source"] for donor in content.get("donors") or [content["donor"]]]
    tasks = content.get("tasks", {})
    pairs = [(host, donors[0]) for host in hosts] + [(hosts[0], donor) for donor in donors[1:]]
    return [
        f"surgeon profile {host} --donor {donor}" + (f" --task {tasks[host]}" if host in tasks else "")
        for host, donor in pairs
    ]


def preset_plan(name: str, scale: Scale = "full") -> StudyPlan:
    """Return the plan of a preset.

    Raises:
        ConfigError: There is no such preset, or it is measured without training.
    """
    content = preset(name, scale)
    if content.get("kind") == "profile":
        raise ConfigError(
            f"{content['title']} is measured without training. Run: {'; '.join(profile_commands(content))}"
        )
    return StudyPlan.from_dict(content)


def _folder() -> Path:
    return Path(str(resources.files("layer_surgeon") / "study" / "presets"))
