"""How the settings are told that generations were made with."""

from driving import work

from megalit.synthesis.journal import Accepted, Place, Settings
from megalit.synthesis.ledger import Ledger
from megalit.synthesis.requests import Sampling
from megalit.synthesis.settings import made_otherwise, set_otherwise


def test_values_that_differ_are_named() -> None:
    now = work(sampling=Sampling(top_k=5)).settings
    then = {**now, "sampling": {**now["sampling"], "top_k": 0, "stop": []}, "engine": {"options": {"min_p": 0.1}}}
    assert set_otherwise(now, now) == []
    assert set_otherwise(then, now) == ["sampling.top_k 0, now 5", "engine.options {'min_p': 0.1}, now None"]


def test_options_of_another_version_are_no_difference() -> None:
    now = work().settings
    less = {**now, "cleaning": {name: value for name, value in now["cleaning"].items() if name != "max_words"}}
    assert set_otherwise(less, now) == set_otherwise(now, less) == []


def test_generations_are_counted_once_and_by_settings() -> None:
    def accepted(number: int, settings: str) -> Accepted:
        return Accepted(f"{number:032x}", "d", "c", number, "text", None, 0, 0, settings, 1, 1)

    of = work(sampling=Sampling(seed=9))
    values = [Settings(f"seed {seed}", work(sampling=Sampling(seed=seed)).settings) for seed in range(3)]
    records = [
        *values,
        accepted(0, of.fingerprint),
        accepted(0, "seed 0"),
        accepted(1, "seed 0"),
        accepted(2, "seed 1"),
        accepted(2, "seed 2"),
        accepted(3, "seed 2"),
        accepted(4, "seed 2"),
        accepted(4, of.fingerprint),
    ]
    ledger = Ledger(3, of.fingerprint)
    for _ in range(2):  # however often they are read
        ledger.add((Place("segment", at), record) for at, record in enumerate(records))
    first, second = made_otherwise(ledger, of.settings)
    assert first.startswith("2 of 5 generations were made with other settings (sampling.seed 2, now 9): they stay")
    assert second.startswith("1 of 5 generations were made with other settings (sampling.seed 0, now 9)")
