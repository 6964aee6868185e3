"""Published points are data of the package."""

import math

from megalit.scaling.published import load_published


def test_the_ensembles_of_the_paper_fall_towards_their_asymptotes() -> None:
    curves = [curve for curve in load_published() if curve.figure == "ensembles"]
    assert len(curves) == 5
    for curve in curves:
        members, losses = zip(*curve.points, strict=True)
        assert members == (1, 2, 3, 4, 5)
        assert list(losses) == sorted(losses, reverse=True)
        assert curve.asymptote is not None
        assert curve.asymptote < losses[-1]


def test_a_value_that_two_figures_show_is_the_same_in_both_within_their_precision() -> None:
    held = {(curve.figure, curve.name): curve for curve in load_published()}
    at_16 = dict(held["generations", "simple"].points)[16]
    for figure, name, x in (
        ("real epochs", "simple, 16 generations", 16),
        ("context length", "simple", 4096),
        ("generations", "simple", 16),
    ):
        curve = held[figure, name]
        assert math.isclose(dict(curve.points)[x], at_16, abs_tol=2 * curve.precision), curve
    at_8 = dict(held["generations", "stitched"].points)[8]
    ordering = held["ordering", "order at 8 generations"]
    assert dict(zip(ordering.labels, (y for _, y in ordering.points), strict=True))["real last"] == at_8


def test_every_curve_says_where_it_is_from() -> None:
    curves = load_published()
    assert len({(curve.figure, curve.name) for curve in curves}) == len(curves)
    for curve in curves:
        assert "arXiv" in curve.source
        assert len(curve.points) == len(curve.labels) or (curve.x_axis and not curve.labels)
        # A value off a figure has an uncertainty, a printed one has none.
        assert (curve.precision > 0) == (curve.read == "figure")
