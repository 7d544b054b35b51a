"""The drawing of a training's losses: readable as SVG, and small however long the training was."""

import xml.etree.ElementTree as ET

from workers.finetuning.curve import Curve

SVG = "{http://www.w3.org/2000/svg}"


def lines(curve: Curve) -> list[list[tuple[float, float]]]:
    """Return the points of each line of a drawing."""
    drawn = ET.fromstring(curve.draw())
    points = [line.get("points", "").split() for line in drawn.iter(f"{SVG}polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line)] for line in points]


def test_losses_fall_from_left_to_right() -> None:
    curve = Curve(500)
    for step in range(1, 11):
        curve.add(step, 10.0 / step, 12.0 / step if step % 5 == 0 else None)

    training, validation = lines(curve)

    assert [x for x, _ in training] == sorted(x for x, _ in training)
    assert [y for _, y in training] == sorted(y for _, y in training)  # y grows downwards
    assert (len(training), len(validation)) == (10, 2)


def test_single_step_without_validation_draws_curve() -> None:
    curve = Curve(500)
    curve.add(1, 2.5, None)

    assert len(lines(curve)) == 1


def test_long_training_has_no_more_points_than_allowed() -> None:
    curve = Curve(50)
    for step in range(1, 10_001):
        curve.add(step, 1.0, None)

    (training,) = lines(curve)

    assert 25 <= len(training) <= 50
    assert training[-1][0] > 0.9 * training[0][0]
