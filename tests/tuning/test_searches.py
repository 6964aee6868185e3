"""The other searches: all points, random ones, and samplers of Optuna."""

from pathlib import Path

import optuna
import pytest
from surfaces import Toy, open_study, sweep

from megalit.tuning import ExhaustiveSampler, ShuffledSampler, certify
from megalit.tuning.results import Unit

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


def test_a_base_that_never_works_ends_a_search_early(tmp_path: Path) -> None:
    study, toy = open_study(tmp_path, GRID), Toy(lambda unit: -1)
    sweep(study, toy, ExhaustiveSampler())
    assert len(toy.asked) == 3
