"""The other searches: all points, random ones, and samplers of Optuna."""

from pathlib import Path

import optuna
import pytest
from surfaces import Toy, open_study, sweep

from megalit.tuning import ExhaustiveSampler, ShuffledSampler, certify
from megalit.tuning.results import Unit
from megalit.tuning.samplers import DrawnSampler
from megalit.tuning.space import Point

GRID = {"a": [1, 2, 3], "b": ["x", "y"]}


def bowl(unit: Unit) -> float:
    return abs(float(unit.point[0]) - 2) + (unit.point[1] == "x") if len(unit.point) > 1 else 1.0


def test_grid_search_runs_each_point_once_and_certifies(tmp_path: Path) -> None:
    study, toy = open_study(tmp_path, GRID, seeds=[0, 1]), Toy(bowl)
    results = sweep(study, toy, ExhaustiveSampler())
    assert len(toy.asked) == 12
    assert set(toy.asked.values()) == {1}
    assert certify(results).point == {"a": 2, "b": "y"}
    assert certify(results).certified


def test_random_search_on_a_grid_never_repeats_and_knows_its_end(tmp_path: Path) -> None:
    study, toy = open_study(tmp_path, GRID), Toy(bowl)
    sweep(study, toy, ShuffledSampler(), trials=4)
    assert len(toy.asked) == 4
    sweep(study, toy, ShuffledSampler())
    assert len(toy.asked) == 6
    assert set(toy.asked.values()) == {1}


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)])
def test_a_sampler_of_optuna_exhausts_a_grid_without_repeats(
    tmp_path: Path, sampler: optuna.samplers.BaseSampler
) -> None:
    study, toy = open_study(tmp_path, GRID, seeds=[0, 1], by_number=False), Toy(bowl)
    results = sweep(study, toy, sampler)
    assert len(toy.asked) == 12
    assert set(toy.asked.values()) == {1}
    assert certify(results).certified


def test_a_sampler_of_optuna_on_ranges(tmp_path: Path) -> None:
    space = {"lr": {"float": [1e-4, 1e-1], "log": True}, "epochs": {"int": [1, 64]}}
    study, toy = open_study(tmp_path, space, seeds=[0, 1], by_number=False), Toy(lambda unit: float(unit.point[0]))
    results = sweep(study, toy, optuna.samplers.TPESampler(seed=0), trials=6)
    assert len(results.points) == 6
    assert len(toy.asked) == 12
    certificate = certify(results)
    assert not certificate.certified
    assert certificate.loss == min(unit.point[0] for unit in toy.asked)
    assert "no neighbours" in (certificate.reason or "")


def drawn(folder: Path, seed: int, workers: int = 1) -> list[Point]:
    """The points of a random search on ranges, by workers that take turns."""
    space = {"lr": {"float": [1e-4, 1e-1], "log": True}, "wd": {"float": [1e-4, 1e-1], "log": True}}
    studies = [open_study(folder, space, by_number=False) for _ in range(workers)]
    for trials in range(1, 7):
        sweep(studies[trials % workers], Toy(lambda unit: 1.0), DrawnSampler(seed), trials=trials)
    return studies[0].results.points


def test_random_search_on_ranges_follows_from_its_seed_however_many_workers_share_it(tmp_path: Path) -> None:
    points = drawn(tmp_path / "one", seed=0)
    assert len(set(points)) == 6
    assert all(lr != wd for lr, wd in points)
    assert drawn(tmp_path / "two", seed=0, workers=2) == points
    assert not set(drawn(tmp_path / "other", seed=1)) & set(points)


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_where_a_sampler_repeats_itself_another_point_follows_from_the_seed(tmp_path: Path) -> None:
    def order(folder: str, seed: int) -> list[Point]:
        study = open_study(tmp_path / folder, {"a": list(range(12))}, seeds=[seed], by_number=False)
        repeats = optuna.samplers.PartialFixedSampler({"a": 0}, optuna.samplers.RandomSampler())
        return sweep(study, Toy(lambda unit: 1.0), repeats).points

    assert order("one", 0) == order("two", 0) != order("three", 1)


def test_a_base_that_never_works_ends_a_search_early(tmp_path: Path) -> None:
    study, toy = open_study(tmp_path, GRID), Toy(lambda unit: -1)
    sweep(study, toy, ExhaustiveSampler())
    assert len(toy.asked) == 3
