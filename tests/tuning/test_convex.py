"""The convex search: what it certifies, and how little it runs."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from surfaces import PAPER, Toy, ask_and_tell, is_local_optimum, open_study, ridge, sweep

from megalit.tuning import Results, Space, certify, is_certified
from megalit.tuning.results import Unit


@pytest.mark.parametrize("start", [{}, {"lr": 1e-4, "wd": 0.0, "epochs": 1}, {"lr": 3e-2, "wd": 6.4, "epochs": 64}])
def test_a_ridge_with_noise_is_certified_after_few_trials(tmp_path: Path, start: dict[str, float]) -> None:
    study, toy = open_study(tmp_path, PAPER, start=start), Toy(ridge)
    results = sweep(study, toy)
    certificate = certify(results)
    assert certificate.certified
    assert is_certified(study.study)
    point = tuple((certificate.point or {}).values())
    assert is_local_optimum(point, results.space, lambda point: ridge(Unit(point, 0)))
    assert set(toy.asked.values()) == {1}
    assert len(toy.asked) <= 40 < results.space.size == 336
    # A second look runs nothing.
    sweep(study, toy)
    assert set(toy.asked.values()) == {1}


@settings(max_examples=60)
@given(st.data())
def test_whatever_the_surface_the_certified_point_is_locally_optimal(data: st.DataObject) -> None:
    """Not convex, with ties, divergence: what is certified is so by definition, ties by the number of steps."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    space = Space.parse({f"axis_{number}": list(range(1, size + 1)) for number, size in enumerate(sizes)})
    points = list(product(*(axis.values for axis in space.axes)))
    values = st.sampled_from([1.0, 2.0, 3.0, 4.0, math.inf])
    losses = dict(zip(points, data.draw(st.lists(values, min_size=len(points), max_size=len(points))), strict=True))
    results = ask_and_tell(space, lambda unit: losses[unit.point])
    assert len({claim.unit for claim in results.claims}) == len(results.claims)
    certificate = certify(results)
    if certificate.point is None:
        assert all(math.isinf(losses[claim.unit.point]) for claim in results.claims)
        return
    assert certificate.certified
    best = tuple(certificate.point.values())
    # Steps are equal here, so that ties go to the lower values.
    assert is_local_optimum(best, space, lambda point: (losses[point], point))


def test_it_is_an_ordinary_sampler_of_optuna() -> None:
    results = ask_and_tell(Space.parse(PAPER), ridge)
    assert len(results.claims) <= 40
    assert certify(results).certified


def test_the_certificate_says_what_it_knows(tmp_path: Path) -> None:
    space = {"a": [1.0, 2.0, 3.0], "b": [10, 20]}
    losses = {(2.0, 10): 1.0, (1.0, 10): 1.5, (3.0, 10): math.inf, (2.0, 20): 1.25}
    results = sweep(open_study(tmp_path, space, start={"b": 10}), Toy(lambda unit: losses[unit.point]))
    path = certify(results).write(tmp_path)
    certificate = json.loads(path.read_text())
    assert certificate["certified"] is True
    assert certificate["point"] == {"a": 2.0, "b": 10}
    assert [(n["axis"], n["value"], n["status"], n["loss"], n["margin"]) for n in certificate["neighbours"]] == [
        ("a", 1.0, "done", 1.5, 0.5),
        ("a", 3.0, "diverged", None, None),
        ("b", 20, "done", 1.25, 0.25),
    ]
    assert certificate["edges"] == [["b", "low"]]
    assert certificate["smallest_margin"] == 0.25
    assert certificate["noise"] is None
    assert certificate["trials"] == {"done": 3, "diverged": 1, "failed": 0, "running": 0}
    assert certificate["grid"] == 6


def test_a_margin_below_the_noise_of_the_seeds_is_no_certificate(tmp_path: Path) -> None:
    space = {"a": [1, 2, 3]}

    def loss(unit: Unit) -> float:
        distance = abs(unit.point[0] - 2)  # type: ignore[operator]
        return 1 + 0.1 * distance + [0.0, 0.2, -0.2, 0.0, 0.0, 0.0, 0.0, 0.0][unit.seed]

    study, toy = open_study(tmp_path, space, seeds=[0, 1, 2]), Toy(loss)
    certificate = certify(sweep(study, toy))
    assert sum(toy.asked.values()) == 9
    # Each point's seeds have a standard deviation of 0.2.
    assert certificate.noise == pytest.approx(0.2 * math.sqrt(2 / 3))
    assert not certificate.certified
    assert "below the noise" in (certificate.reason or "")
    assert certificate.smallest_margin == pytest.approx(0.1)
    # More seeds are added to what is there.
    study = open_study(tmp_path, space, seeds=range(8))
    certificate = certify(sweep(study, toy))
    assert set(toy.asked.values()) == {1}
    assert sum(toy.asked.values()) == 24
    assert certificate.noise == pytest.approx(math.sqrt(0.08 / 7) * math.sqrt(2 / 8))
    assert certificate.certified


def test_a_start_that_fails_ends_the_search(tmp_path: Path) -> None:
    toy = Toy(lambda unit: -1)
    study = open_study(tmp_path, {"a": [1, 2, 3]})
    certificate = certify(sweep(study, toy))
    assert toy.asked == {Unit((2,), 0): 1}
    assert certificate.reason == "no point has a finite loss"
    (claim,) = study.results.claims
    assert (claim.status, claim.error) == ("failed", "out of memory")


def test_a_hole_beside_the_best_point_is_named(tmp_path: Path) -> None:
    toy = Toy(lambda unit: -1 if unit.point == (3,) else abs(unit.point[0] - 2))  # type: ignore[operator]
    study = open_study(tmp_path, {"a": [1, 2, 3]})
    certificate = certify(sweep(study, toy))
    assert not certificate.certified
    assert not certificate.is_settled
    assert "a 3 is failed" in (certificate.reason or "")
    toy.loss = lambda unit: abs(unit.point[0] - 2)  # type: ignore[operator]
    assert not certify(sweep(open_study(tmp_path, {"a": [1, 2, 3]}), toy)).certified
    certificate = certify(sweep(open_study(tmp_path, {"a": [1, 2, 3]}, retry_failed=True), toy))
    assert certificate.certified
    assert toy.asked == {Unit((2,), 0): 1, Unit((1,), 0): 1, Unit((3,), 0): 2}


def test_the_grid_grows_past_its_edge(tmp_path: Path) -> None:
    space = {"a": [1.0, 3.0, 10.0], "b": [0.1, 0.2, 0.3]}

    def loss(unit: Unit) -> float:
        a, b = unit.point
        return abs(math.log10(a / 95)) + abs(b - 0.1)  # type: ignore[operator]

    study, toy = open_study(tmp_path, space), Toy(loss)
    certificate = certify(sweep(study, toy))
    assert certificate.point == {"a": 10.0, "b": 0.1}
    assert certificate.edges == [("a", "high"), ("b", "low")]
    certificate = certify(sweep(study, toy, extend=True))
    assert certificate.certified
    assert certificate.point == {"a": 100.0, "b": 0.1}
    # It stops at 0: grids of positive numbers stay positive.
    assert study.results.space.axes[0].values == (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    assert set(toy.asked.values()) == {1}
    # The same command goes on with the grown grid.
    assert Results(open_study(tmp_path, space).study).space == study.results.space


def test_the_grid_does_not_grow_to_what_cannot_be_run(tmp_path: Path) -> None:
    toy = Toy(lambda unit: -1 if unit.point[0] > 1 else 2.0 - unit.point[0] + abs(unit.point[1] - 0.2))  # type: ignore[operator]
    study = open_study(tmp_path, {"share": [0.5, 0.75, 0.9], "rate": [0.1, 0.2, 0.3]})
    certificate = certify(sweep(study, toy, extend=True, can_run=lambda point: point[0] <= 1))
    assert certificate.certified
    assert certificate.point == {"share": 0.9, "rate": 0.2}
    assert certificate.edges == [("share", "high")]
    assert certificate.trials["failed"] == 0


def test_a_budget_ends_the_search_without_a_certificate(tmp_path: Path) -> None:
    study, toy = open_study(tmp_path, PAPER), Toy(ridge)
    certificate = certify(sweep(study, toy, trials=5))
    assert len(toy.asked) == 5
    assert not certificate.certified
    assert "is missing" in (certificate.reason or "")
    assert certify(sweep(study, toy)).certified
    assert set(toy.asked.values()) == {1}
