"""The demo's HTML page: a single file that loads nothing else and needs no scripts."""

import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from layer_surgeon._io import write_text
from layer_surgeon._version import __version__
from layer_surgeon.study.charts import COLORS, Line, Mark, interval_chart, line_chart
from layer_surgeon.study.results import ArmResult, DemoResult

RESULTS = "results.json"
_PACKAGES = ("torch", "transformers", "datasets", "scikit-learn")

_STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#1d2733;background:#fff}
body{max-width:52rem;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;line-height:1.2;margin-bottom:.3rem}h2{font-size:1.15rem;margin-top:2.2rem}
p.lead{color:#45515e;margin-top:0}p.conclusion{background:#f3f6f9;border-left:4px solid #c2570c;padding:.7rem 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.93rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid #dfe4e9;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}
small,.note{color:#66727f;font-size:.85rem}code{font-size:.9em}
"""


def write_page(result: DemoResult) -> None:
    """Write report.html and results.json to the demo's folder.

    Raises:
        WorkspaceError: The files can't be written.
    """
    write_text(result.page, make_page(result))
    write_text(result.folder / RESULTS, json.dumps(result.as_dict(), indent=2, default=str) + "\n")


def make_page(result: DemoResult) -> str:
    """Return the page as HTML."""
    title = f"{result.host_name}, alone and with {_layer_name(result)}"
    epochs = result.config.num_epochs
    seeds = ", ".join(map(str, result.seeds))
    body = f"""<h1>{escape(title)}</h1>
<p class="lead">A decoder layer of {escape(result.donor_name)} was grafted, frozen, between the small model and its
classification head. Both arms were trained on {result.num_train:,} sentences from {escape(result.train_name)} for
{epochs:g} epochs, with the same settings and seeds ({seeds}). They were tested on sentences they had not seen.</p>
<p class="conclusion">{escape(result.conclusion())}</p>
<h2>Accuracy on the test sets</h2>
{_accuracy_chart(result)}
<p class="note">Full dot: mean over the seeds; rings: the single seeds; bar: 95 % interval for the number of sentences
(Wilson). The interval does not include the effect of other seeds; the rings show that effect.</p>
{_results_table(result)}
<p class="note">Difference: grafted minus host alone, in percentage points, with its 95 % interval (Newcombe). If the
interval contains zero, the difference is inconclusive. Both arms see the same sentences, so the true interval is
narrower.</p>
<h2>Parameters</h2>
{_parameter_table(result)}
<h2>Training</h2>
{_training_chart(result)}
<p class="note">Validation accuracy after each epoch, on a fifth of the training sentences. The best epoch of each run
was kept.</p>
{_run_table(result)}
<h2>How these results were made</h2>
<p>{_settings(result)}</p>
<p>Layer: {result.layer_bytes / 1e6:.1f} MB, {"reused from an earlier run" if result.layer_reused else "extracted"}
in {result.extraction_seconds:.1f} s. In total: {result.seconds:.0f} s on {escape(result.arms[0].device)}.</p>
<p><small>layer_surgeon {__version__}; {_versions()}. Sentences: Kotzias et al. 2015, CC BY 4.0. The method is PiFi (ACL
2025).</small></p>"""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _layer_name(result: DemoResult) -> str:
    indices = ", ".join(map(str, result.layer_indices))
    return f"layer {indices} of {result.donor_name}"


def _accuracy_chart(result: DemoResult) -> str:
    marks = []
    for test in result.test_names:
        cells = [result.cell(arm, test) for arm in result.arm_names]
        marks.append(
            [
                Mark(value=cell.accuracy, low=cell.interval.low, high=cell.interval.high, singles=cell.by_seed)
                for cell in cells
            ]
        )
    return interval_chart(result.test_names, result.arm_names, marks)


def _results_table(result: DemoResult) -> str:
    rows = []
    for test in result.test_names:
        for arm in result.arm_names:
            cell = result.cell(arm, test)
            rows.append(
                (
                    test if arm == result.arm_names[0] else "",
                    f"{cell.examples:,}" if arm == result.arm_names[0] else "",
                    arm,
                    f"{cell.accuracy:.1%}",
                    f"{cell.interval.low:.1%} to {cell.interval.high:.1%}",
                    f"{cell.macro_f1:.3f}",
                    ", ".join(f"{value:.1%}" for value in cell.by_seed),
                )
            )
    head = ("test set", "sentences", "arm", "accuracy", "95 % interval", "macro F1", "by seed")
    differences = [
        (test, f"{100 * c.delta:+.1f}", f"{100 * c.interval.low:+.1f} to {100 * c.interval.high:+.1f}", c.verdict)
        for test, c in ((test, result.comparison(test)) for test in result.test_names)
    ]
    return _table(head, rows, numeric=(1, 3, 4, 5, 6)) + _table(
        ("test set", "difference", "95 % interval", "verdict"), differences, numeric=(1, 2)
    )


def _parameter_table(result: DemoResult) -> str:
    parts = list(dict.fromkeys(part for arm in result.arm_names for part in result.runs(arm)[0].parameters))
    rows = []
    for part in [*parts, "all"]:
        row = [part]
        for arm in result.arm_names:
            counts = result.runs(arm)[0].parameters
            pair = counts.get(part, (0, 0)) if part != "all" else tuple(map(sum, zip(*counts.values(), strict=True)))
            row += [f"{pair[0]:,}", f"{pair[1]:,}"]
        rows.append(row)
    head = ["part", *(f"{arm}: {count}" for arm in result.arm_names for count in ("all", "trained"))]
    return _table(head, rows, numeric=range(1, len(head)))


def _training_chart(result: DemoResult) -> str:
    lines = [
        Line(
            name=f"{run.arm}, {run.seed}",
            color=COLORS[result.arm_names.index(run.arm)],
            points=tuple((epoch.epoch, epoch.accuracy) for epoch in run.history),
        )
        for run in result.arms
    ]
    return line_chart(lines, "epoch", "validation accuracy")


def _run_table(result: DemoResult) -> str:
    def row(run: ArmResult) -> Sequence[str]:
        losses = ", ".join(f"{epoch.training_loss:.3f}" for epoch in run.history)
        best = run.history[run.best_epoch - 1]
        return (
            run.arm,
            str(run.seed),
            losses,
            f"{best.accuracy:.1%}",
            f"{best.epoch:g}",
            f"{run.training_seconds:.0f} s",
            f"{run.testing_seconds:.0f} s",
        )

    head = ("arm", "seed", "training loss by epoch", "best validation", "kept epoch", "training", "testing")
    return _table(head, [row(run) for run in result.arms], numeric=range(1, 7))


def _settings(result: DemoResult) -> str:
    config = result.config
    main_settings = (
        f"Adam, learning rate {config.learning_rate:g}, batch {config.batch_size}, gradient clipping "
        f"{config.max_grad_norm:g}, label smoothing {config.label_smoothing:g}, at most {config.max_length} tokens."
    )
    if not result.changed:
        return f"Settings: the paper's. {main_settings}"
    changed = ", ".join(f"{name} = {value}" for name, value in result.changed.items())
    return f"Settings: the paper's, except {escape(changed)}. {main_settings}"


def _versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numeric: Iterable[int]) -> str:
    numeric_columns = set(numeric)

    def cells(values: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if index in numeric_columns else ''}>{escape(str(value))}</{tag}>"
            for index, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
