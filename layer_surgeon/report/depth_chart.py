"""The curve of `surgeon select --candidates depth`: how much a donor's states say after each number of layers."""

from layer_surgeon.report.encodings import LayeredChart, axis_span
from layer_surgeon.report.line_charts import Level, Point, line_chart
from layer_surgeon.study.depths import DepthSelection

_LEAST_SPAN = 4.0


def depth_chart(selection: DepthSelection) -> LayeredChart:
    """Draw the accuracy after each number of layers, with a band of one standard error and a ring around the best."""
    probe, majority = "probe of the states", "most frequent class"
    points = [
        Point(
            line=probe,
            look=probe,
            place=float(score.depth),
            mean=100 * score.accuracy,
            low=100 * max(score.accuracy - score.error, 0),
            high=100 * min(score.accuracy + score.error, 1),
            ringed=score.depth == selection.best,
            details={"layers": str(score.depth), "accuracy": f"{100 * score.accuracy:.1f} %"},
        )
        for score in selection.scores
    ]
    share = 100 * selection.majority
    values = [value for point in points for value in (point.low, point.high)]
    return line_chart(
        points,
        [probe, majority],
        ("layers", "accuracy, %"),
        domain=axis_span([*values, share], _LEAST_SPAN, within=(0, 100)),
        level=Level(look=majority, mean=share, low=share, high=share),
    )
