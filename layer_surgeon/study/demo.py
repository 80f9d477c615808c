"""The demo: a real layer of a real language model, in a real small model, trained on real data, beside its control.

Two arms, the same seeds: the host alone, and the host with the layer; the same head, the same settings. Trained on one
part of the IMDb sentences, tested on the other part and on two data sets of another kind.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from layer_surgeon.checkpoint.packaged import packaged_folder, packaged_gguf
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract import LayerArtifact, extract_layer
from layer_surgeon.finetune import FinetuneConfig, FinetuneResult, evaluate_model, finetune_model
from layer_surgeon.finetune.data import prepare_evaluation
from layer_surgeon.finetune.examples import hold_out
from layer_surgeon.finetune.sources import DataLike
from layer_surgeon.graft import graft_layer
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.study.page import write_page
from layer_surgeon.study.results import ArmResult, DemoResult
from layer_surgeon.workspace import Workspace

HOST_ALONE, GRAFTED = "host alone", "grafted"
# The paper's first seed, and the one after it.
SEEDS = (2023, 2024)
TEST_FRACTION = 0.2
_SPLIT_SEED = 2023


@dataclass(frozen=True, kw_only=True)
class DemoParts:
    """What the demo is made of.

    Attributes:
        host: Folder of the small model.
        host_name: What to call it.
        donor: Gives the donor model's checkpoint, put into the given folder if it has to be made.
        donor_name: What to call it.
        train: The data that is split into a training part and a test part.
        train_name: What to call it.
        others: Data sets that are only tested on, by name.
        label_names: The classes.
    """

    host: Path
    host_name: str
    donor: Callable[[Path, Progress], Path]
    donor_name: str
    train: DataLike
    train_name: str
    others: Mapping[str, DataLike]
    label_names: tuple[str, ...] = ("negative", "positive")


def real_parts() -> DemoParts:
    """MiniLM, Gemma-3-270M and the sentences of Kotzias et al. (2015); the weights come in Python packages.

    Raises:
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        CheckpointError: They hold other weights than expected.
    """
    return DemoParts(
        host=packaged_folder("all-MiniLM-L6-v2"),
        host_name="all-MiniLM-L6-v2",
        donor=lambda folder, progress: packaged_gguf("gemma-3-270m", folder, progress),
        donor_name="gemma-3-270m",
        train="sentences-imdb",
        train_name="imdb",
        others={"amazon": "sentences-amazon", "yelp": "sentences-yelp"},
    )


def run_demo(
    workspace: Workspace | None = None,
    progress: Progress | None = None,
    *,
    parts: DemoParts | None = None,
    seeds: Sequence[int] = SEEDS,
    config: FinetuneConfig | None = None,
) -> DemoResult:
    """Extract a layer, train both arms, test them, and write the page.

    Everything lies in the folder `demo` of the workspace, a workspace of its own: the user's latest layer, graft and
    run stay what they are. A second run uses the extracted layer again and trains anew.

    Args:
        workspace: Where to write.
        progress: Is told about everything that takes time.
        parts: Other parts than the real ones.
        seeds: One run of each arm for each.
        config: Settings; default: the paper's. The seed in it does not count.

    Raises:
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        WorkspaceError: The workspace can't be written.
    """
    started = time.monotonic()
    progress, config = progress or NullProgress(), config or FinetuneConfig()
    parts = parts or real_parts()
    place = Workspace((workspace or Workspace()).root / "demo")
    artifact, reused = _layer(parts, place, progress)
    extracted = time.monotonic()
    train, tests = _data(parts)
    shutil.rmtree(place.root / "runs", ignore_errors=True)
    arms: list[ArmResult] = []
    for seed in seeds:
        for arm, donor in ((HOST_ALONE, None), (GRAFTED, artifact)):
            progress.notice(f"{arm}, seed {seed}:")
            # Said and not left to be guessed; every set here has these columns.
            settings = replace(config, seed=seed, text_column="text", label_column="label")
            result = _train_arm(arm, parts.host, donor, train, settings, place, progress)
            arms.append(_test_arm(arm, result, parts.host, tests, progress))
    outcome = DemoResult(
        host_name=parts.host_name,
        donor_name=parts.donor_name,
        layer_indices=artifact.layer_indices,
        layer_bytes=artifact.num_bytes,
        layer_reused=reused,
        train_name=parts.train_name,
        num_train=len(train),
        arms=tuple(arms),
        config=config,
        changed=_changed(config),
        extraction_seconds=extracted - started,
        seconds=time.monotonic() - started,
        folder=place.root,
    )
    write_page(outcome)
    return outcome


def _layer(parts: DemoParts, place: Workspace, progress: Progress) -> tuple[LayerArtifact, bool]:
    folder = place.folder("layer", f"{parts.donor_name}-last")
    if folder.exists():
        try:
            artifact = LayerArtifact.open(folder)
            artifact.verify()
        except ArtifactError as error:
            progress.notice(f"{error} It is extracted again.")
            shutil.rmtree(folder)
        else:
            progress.notice(f"The layer in {folder} is used again.")
            return artifact, True
    cache = place.root / "donor-model"
    try:
        checkpoint = parts.donor(cache, progress)
        return extract_layer(checkpoint, layer=-1, output=folder, progress=progress), False
    finally:
        # 253 MB that the packages hold already; what the demo needs from now on is the layer.
        shutil.rmtree(cache, ignore_errors=True)


def _data(parts: DemoParts) -> tuple[list[dict[str, Any]], dict[str, DataLike]]:
    """Training rows, and test data by name: the held-out part, the same for every seed, comes first."""
    _, examples = prepare_evaluation(parts.train, parts.label_names, FinetuneConfig())
    rest, held_out = hold_out(examples, TEST_FRACTION, _SPLIT_SEED)
    rows = [
        [{"text": text, "label": parts.label_names[label]} for text, label in zip(part.texts, part.labels, strict=True)]
        for part in (rest, held_out)
    ]
    return rows[0], {f"{parts.train_name} (held out)": rows[1], **parts.others}


def _train_arm(
    arm: str,
    host: Path,
    donor: LayerArtifact | None,
    train: list[dict[str, Any]],
    config: FinetuneConfig,
    place: Workspace,
    progress: Progress,
) -> FinetuneResult:
    set_seed(config.seed)
    return finetune_model(
        graft_layer(host, donor),
        train,
        config=config,
        output=place.folder("run", f"{arm.replace(' ', '-')}-seed-{config.seed}"),
        workspace=place,
        tokenizer=host,
        progress=progress,
    )


def _test_arm(
    arm: str, result: FinetuneResult, host: Path, tests: Mapping[str, DataLike], progress: Progress
) -> ArmResult:
    began = time.monotonic()
    scores = {
        name: evaluate_model(result.model, data, tokenizer=host, config=result.config, progress=progress).metrics
        for name, data in tests.items()
    }
    return ArmResult(
        arm=arm,
        seed=result.config.seed,
        path=result.path,
        parameters=result.model.parameter_counts(),
        history=result.history,
        best_epoch=result.best_epoch,
        scores=scores,
        training_seconds=result.seconds,
        testing_seconds=time.monotonic() - began,
        device=result.device,
    )


def _changed(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that are not the paper's."""
    defaults = FinetuneConfig()
    return {
        entry.name: getattr(config, entry.name)
        for entry in fields(config)
        if getattr(config, entry.name) != getattr(defaults, entry.name) and entry.name != "seed"
    }
