"""The experiment on translations: what is made of its records, and what is measured behind siblings."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megalit.errors import UserError

HERE = Path(__file__).parents[2] / "experiments" / "translations"


def test_nothing_to_report(experiment: SimpleNamespace, known: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        experiment.report.write_report(known, "small", tmp_path)


def test_report_of_made_up_losses(
    experiment: SimpleNamespace, known: Any, trained: SimpleNamespace, tmp_path: Path
) -> None:
    estimates = experiment.estimates
    best = experiment.results.tuned("small", known)
    # Real only: seeds 0, 1, 2 are .02 apart; the others .04.
    real, simple = (estimates.of_seeds(known, best[stream]) for stream in ("real", "simple"))
    base = known.expected(best["real"])
    assert {seed: real[seed] for seed in range(3)} == pytest.approx({0: base, 1: base + 0.02, 2: base + 0.04})
    differences, half = estimates.paired(simple, real)
    assert differences[:3] == pytest.approx([differences[0] + 0.02 * seed for seed in range(3)])
    # The 95% interval of the mean of (0, .02, .04): 4.3027 · .02 / sqrt(3).
    assert estimates.half_width([0.0, 0.02, 0.04]) == pytest.approx(0.049683, abs=1e-5)
    assert half is not None
    # Twice the data is worth .25: an eighth of 1,000 tokens is 125.
    points = estimates.baseline(known, best)
    assert [tokens for tokens, _ in points] == [62, 125, 250, 500]
    whole = dict(points)
    assert estimates.efficiency([(100, 4.0), (200, 3.75)], 100, 3.875) == "1.41"
    assert estimates.efficiency(points, 125, whole[500] - 0.1) == "> 4.00"
    assert estimates.efficiency(points, 125, whole[62] + 0.1) == "< 0.50"
    assert estimates.efficiency([(100, 4.0), (200, 4.1)], 100, 4.0).startswith("unknown")
    experiment.report.write_report(known, "small", tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| 3 | 3.0000 / 2.9000 / 2.9000 | 3.0000 / 2.9500 / 2.9500 |" in text
    assert "| 5 | 3.0000 / 2.9000 / 2.9000 / 2.9000 / 2.9000 |" in text
    assert "stitched-4 minus simple-4: " in text
    assert "| recipe | 512 | 1,024 |" in text
    gap = known.expected(best["stitched"]) - known.expected(best["simple"])
    assert f"- at 1,024, stitched-4 minus simple-4: {gap:+.4f}" in text
    # A change that was run with three seeds is compared with the same seeds; so is a batch, at one rate each.
    of_steps = text[text.index("## steps") :]
    assert "(by seed: -0.0500, -0.0500, -0.0500)" in of_steps
    paper = next(iter(experiment.table.steps(best)))
    assert of_steps.count("_paper-order minus ") == of_steps.count(f"{paper.name} minus {best['stitched'].name}: ") == 1
    rows = [line for line in of_steps.splitlines() if line.startswith("| stitched-") and "muon-faster" in line]
    assert [row.split("|")[-2].strip() for row in rows] == 3 * ["-0.0500"]
    of_batches = text[text.index("## batch") : text.index("## steps")]
    gaps = [line for line in of_batches.splitlines() if "batch-8 minus simple-" in line and "- stitched" in line]
    assert ["(one seed)" in line for line in gaps] == [True, False]
    of_search = text[text.index("## search") : text.index("## seeds")]
    assert "minus" not in of_search, "its runs differ in their settings"
    # The others of their kind are repeated last, and told of where they are asked for first.
    of_generations = text[text.index("## generations") : text.index("## order")]
    for count in (1, 11):
        run, other = (replace(best[stream], generations=count) for stream in ("stitched", "simple"))
        assert text.count(f"- {run.name} minus ") == 2
        assert f"- {run.name} minus {other.name}: -0.1000 ± 0.0000 (by seed: " in of_generations
        assert f"- {run.name} minus {best['stitched'].name}: +0.0000 ± 0.0000 (by seed: " in of_generations
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_a_line_between_two_amounts_says_more_than_the_law_of_all(experiment: SimpleNamespace) -> None:
    def loss(tokens: float) -> float:
        return 3.0 + 100 / math.sqrt(tokens)

    points = [(tokens, loss(tokens)) for tokens in (500, 1_000, 2_000, 4_000)]
    estimates = experiment.estimates
    assert estimates.efficiency_by_law(points, 1_000, loss(1_500)) == "1.50"
    assert float(estimates.efficiency(points, 1_000, loss(1_500))) > 1.5
    assert estimates.efficiency_by_law(points[:2], 1_000, loss(1_500)) == ""
    assert estimates.efficiency_by_law([*points, (8_000, points[-1][1])], 1_000, loss(1_500)) == ""


def test_noise_is_pooled_around_the_mean_of_each_setting(experiment: SimpleNamespace) -> None:
    assert experiment.estimates.pooled([[1.0, 3.0], [10.0, 11.0, 12.0], [5.0]]) == (pytest.approx((4 / 3) ** 0.5), 3)
    assert experiment.estimates.pooled([[1.0], []]) is None


def test_search_says_where_it_ended(experiment: SimpleNamespace, known: Any) -> None:
    grid, edges = experiment.grid, experiment.estimates.edges
    run = replace(grid.START["small"]["simple"], epochs=8)
    for axis in grid.GRID:
        for near in grid.neighbours(run, axis):
            known.add(near, Path())
    assert edges(known, run) == ["epochs: at the budget of 32 passes, more was not tried"]
    assert "weight_decay: at the edge of the grid" in edges(known, replace(run, weight_decay=0.0))
    assert edges(known, replace(run, epochs=4))[0] == "epochs: 8 and 2 not tried"


def test_a_record_of_another_meaning_is_not_taken(experiment: SimpleNamespace, known: Any) -> None:
    run = replace(experiment.grid.START["small"]["real"], change="muon", settings={"model.optimizer.name": "muon"})
    known.add(run, Path())
    assert known.of(run) is not None
    assert known.of(replace(run, settings={"model.optimizer.momentum": "0.9"})) is None


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.lists(st.integers(0, 9), max_size=20)),
        min_size=1,
    ),
    st.integers(1, 16),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_only_the_real_document_is_predicted(
    experiment: SimpleNamespace, pairs: list[tuple[list[int], list[int]]], length: int
) -> None:
    suite = experiment.siblings.RealBehind(*zip(*pairs, strict=True), length)
    batch = suite.batch(range(suite.windows))
    for (own, piece), tokens, targets in zip(pairs, batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        predicted = [at for at, target in enumerate(targets) if target != experiment.siblings.IGNORED]
        assert [targets[at] for at in predicted] == own[1:][-length:]
        end = predicted[-1]
        assert [*tokens[: end + 1], targets[end]] == (piece + own)[-length - 1 :]
    assert suite.targets == sum(min(len(own) - 1, length) for own, _ in pairs)


def test_copying_gets_right_what_follows_most_often(experiment: SimpleNamespace) -> None:
    copied = experiment.siblings.copied
    assert copied([1, 2, 3, 4], [[1, 2, 3, 4]]) == 2, "the first two have no predecessors"
    assert copied([1, 2, 3], [[1, 2, 5], [1, 2, 3], [9, 1, 2, 5]]) == 0
    assert copied([1, 2, 5, 7], [[1, 2, 5], [1, 2, 3], [9, 1, 2, 5]]) == 1
    assert copied([1, 2, 3], [[1], [2, 3]]) == 0, "pieces are apart"
    assert copied([1, 2, 3], []) == 0


def test_a_setting_of_several_seeds_stands_against_a_chance_better_one(
    experiment: SimpleNamespace, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, start = experiment.results, experiment.grid.START["small"]["simple"]
    losses = {start: 4.0, replace(start, weight_decay=0.2): 4.0 - 0.5 * results.TIE}
    monkeypatch.setattr(known, "loss", losses.get)
    monkeypatch.setattr(known, "of", losses.get)
    assert results.tuned("small", known)["simple"].weight_decay == 0.2, "one seed each"
    losses[replace(start, seed=1)] = 4.0
    assert results.tuned("small", known)["simple"] == start
    losses[replace(start, weight_decay=0.2)] = 4.0 - 2 * results.TIE
    assert results.tuned("small", known)["simple"].weight_decay == 0.2, "more than a tie"


def test_averages_of_weights_that_are_no_longer_the_records_are_measured_again(
    experiment: SimpleNamespace, tmp_path: Path
) -> None:
    kept = HERE / "results" / "small"
    results = Path(shutil.copytree(kept, tmp_path / "small"))
    known = experiment.results.Results(results, None)
    name = "simple-4_e8_lr0.003_wd0.4"
    assert len(known.averages(name)["logits"]) == 5
    known._results[name] = replace(known[name], loss=known[name].loss + 0.01)
    assert known.averages(name) is None
    (results / f"{name}_seed4.json").unlink()
    assert experiment.results.Results(results, None).averages(name) is None


def test_a_student_of_another_teacher_has_another_name(experiment: SimpleNamespace) -> None:
    start = experiment.grid.START["small"]
    others = {**start, "real": replace(start["real"], learning_rate=3e-3)}
    names = [{run.name for run in experiment.table.hard_labels(tuned)} for tuned in (start, others)]
    assert not names[0] & names[1]
