"""The demo: a layer of a real language model, grafted into a real small model and trained on real data, with a control.

There are two arms, the host alone and the host with the layer, with the same seeds, head and settings. Both are trained
on one part of the IMDb sentences, and tested on the other part and on two data sets from other domains.
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
# The paper's first seed, and the next one.
SEEDS = (2023, 2024)
TEST_FRACTION = 0.2
_SPLIT_SEED = 2023


@dataclass(frozen=True, kw_only=True)
class DemoParts:
    """The models and data of the demo.

    Attributes:
        host: Folder of the small model.
        host_name: Name of the small model in the results.
        donor: Returns the path of the donor's checkpoint. If the checkpoint has to be assembled, this happens in the
            folder that is passed.
        donor_name: Name of the donor in the results.
        train: The data that is split into a training part and a test part.
        train_name: Name of this data set in the results.
        others: Name -> data set that is only used for tests.
        label_names: The names of the classes.
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
    """Return MiniLM, Gemma-3-270M and the sentences of Kotzias et al. (2015). The weights are in Python packages.

    Raises:
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        CheckpointError: The packages contain other weights than expected.
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

    The folder `demo` of the workspace is used as a separate workspace, so the user's latest layer, graft and run don't
    change. A second run reuses the extracted layer and repeats the training.

    Args:
        workspace: The workspace in which the folder `demo` is created.
        progress: Receives updates about all longer steps.
        parts: Models and data; the real ones by default.
        seeds: The seeds; every arm is trained once with each of them.
        config: The settings; the paper's by default. Its seed is ignored.

    Raises:
        SourceNotFoundError: The packages of the extra [demo] are not installed.
        WorkspaceError: The workspace can't be written.
    """
    start_time = time.monotonic()
    progress, config = progress or NullProgress(), config or FinetuneConfig()
    parts = parts or real_parts()
    demo_workspace = Workspace((workspace or Workspace()).root / "demo")
    artifact, reused = _open_or_extract_layer(parts, demo_workspace, progress)
    extraction_end = time.monotonic()
    train, tests = _split_data(parts)
    shutil.rmtree(demo_workspace.root / "runs", ignore_errors=True)
    arms: list[ArmResult] = []
    for seed in seeds:
        for arm, donor in ((HOST_ALONE, None), (GRAFTED, artifact)):
            progress.notice(f"{arm}, seed {seed}:")
            # All data sets here have the same columns. Naming them avoids guessing.
            settings = replace(config, seed=seed, text_column="text", label_column="label")
            result = _train_arm(arm, parts.host, donor, train, settings, demo_workspace, progress)
            arms.append(_test_arm(arm, result, parts.host, tests, progress))
    demo_result = DemoResult(
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
        extraction_seconds=extraction_end - start_time,
        seconds=time.monotonic() - start_time,
        folder=demo_workspace.root,
    )
    write_page(demo_result)
    return demo_result


def _open_or_extract_layer(
    parts: DemoParts, demo_workspace: Workspace, progress: Progress
) -> tuple[LayerArtifact, bool]:
    folder = demo_workspace.folder("layer", f"{parts.donor_name}-last")
    if folder.exists():
        try:
            artifact = LayerArtifact.open(folder)
            artifact.verify()
        except ArtifactError as error:
            progress.notice(f"{error} The layer is extracted again.")
            shutil.rmtree(folder)
        else:
            progress.notice(f"The layer in {folder} is reused.")
            return artifact, True
    cache = demo_workspace.root / "donor-model"
    try:
        checkpoint = parts.donor(cache, progress)
        return extract_layer(checkpoint, layer=-1, output=folder, progress=progress), False
    finally:
        # The assembled checkpoint takes 253 MB, and from now on the demo only needs the layer.
        shutil.rmtree(cache, ignore_errors=True)


def _split_data(parts: DemoParts) -> tuple[list[dict[str, Any]], dict[str, DataLike]]:
    """Return the training rows, and name -> test data. The held-out part comes first, and is the same for all seeds."""
    _, examples = prepare_evaluation(parts.train, parts.label_names, FinetuneConfig())
    kept, held_out = hold_out(examples, TEST_FRACTION, _SPLIT_SEED)
    rows = [
        [{"text": text, "label": parts.label_names[label]} for text, label in zip(part.texts, part.labels, strict=True)]
        for part in (kept, held_out)
    ]
    return rows[0], {f"{parts.train_name} (held out)": rows[1], **parts.others}


def _train_arm(
    arm: str,
    host: Path,
    donor: LayerArtifact | None,
    train: list[dict[str, Any]],
    config: FinetuneConfig,
    demo_workspace: Workspace,
    progress: Progress,
) -> FinetuneResult:
    set_seed(config.seed)
    return finetune_model(
        graft_layer(host, donor),
        train,
        config=config,
        output=demo_workspace.folder("run", f"{arm.replace(' ', '-')}-seed-{config.seed}"),
        workspace=demo_workspace,
        tokenizer=host,
        progress=progress,
    )


def _test_arm(
    arm: str, result: FinetuneResult, host: Path, tests: Mapping[str, DataLike], progress: Progress
) -> ArmResult:
    start_time = time.monotonic()
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
        testing_seconds=time.monotonic() - start_time,
        device=result.device,
    )


def _changed(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that differ from the paper's."""
    defaults = FinetuneConfig()
    return {
        item.name: getattr(config, item.name)
        for item in fields(config)
        if getattr(config, item.name) != getattr(defaults, item.name) and item.name != "seed"
    }
