"""The runs of the experiment, and in which order they are worth their cost.

A group answers one question and lists its runs; the driver takes the groups in order and leaves out what has a
record. Groups depend on the best settings found so far, so a search is a group like any other: it lists the
neighbours of the best, and when one of them is better, it lists that one's.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

from grid import GRID, Tuned, neighbours
from spec import Run, changed

# Single changes that are run with the seeds of an ensemble, too, as is what they are compared with.
REPEATED = ("muon faster", "wsd")

# Members of an ensemble, which are the seeds of a run; of the tuned runs there may be more.
MEMBERS = 3
MOST_MEMBERS = 5

Group = Callable[[Tuned], Iterator[Run]]


def search(tuned: Tuned) -> Iterator[Run]:
    """Are epochs, learning rate and weight decay of each stream better than their neighbours?"""
    yield from tuned.values()
    for axis in GRID:
        for run in tuned.values():
            yield from neighbours(run, axis)


def seeds(tuned: Tuned) -> Iterator[Run]:
    """How much does the loss differ between seeds?"""
    for seed in range(1, MEMBERS):
        for run in tuned.values():
            yield replace(run, seed=seed)


def generations(tuned: Tuned) -> Iterator[Run]:
    """Is the loss monotone in G?"""
    for count in (11, 1, 8, 2):
        for stream in ("simple", "stitched"):
            yield replace(tuned[stream], generations=count)


def order(tuned: Tuned) -> Iterator[Run]:
    """Where does the real document belong in its megadoc?"""
    for place in ("first", "absent"):
        yield changed(tuned["stitched"], f"real {place}", {"data.real_document": place})


def batch(tuned: Tuned) -> Iterator[Run]:
    """Do other batches suit a stitched stream, whose windows hold fewer documents? Equal tokens; in windows a step."""
    for windows in (8, 1):  # small.yaml has 2; full.yaml has 8 itself
        for stream in ("stitched", "simple"):
            settings = {"data.global_batch_tokens": str(1024 * windows)}
            run = tuned[stream]
            yield changed(run, f"batch {windows}", settings)
            # A larger batch wants a higher rate.
            higher = [rate for rate in GRID["learning_rate"] if windows > 1 and rate > run.learning_rate]
            faster = [changed(replace(run, learning_rate=rate), f"batch {windows}", settings) for rate in higher]
            yield from faster
            for first in faster[:1]:
                yield from seeded(first)[1:]


def window(tuned: Tuned) -> Iterator[Run]:
    """Does stitching gain with the ratio of window to document?"""
    for length in (512, 2048):
        for stream in ("simple", "stitched", "real"):
            yield changed(tuned[stream], f"window {length}", {"data.context_length": str(length)})


def mask(tuned: Tuned) -> Iterator[Run]:
    """Without attention from one text to another: is it the attention, or when a model meets the rephrases?"""
    for seed in range(MEMBERS):
        for stream in ("stitched", "simple"):
            masked = changed(tuned[stream], "masked", {"model.cross_document_attention": "false"})
            yield replace(masked, seed=seed)


def muon(tuned: Tuned) -> Iterator[Run]:
    """Are the streams in the same order under another optimizer? At higher learning rates, the next with seeds."""
    for seed in range(MEMBERS):
        for stream in ("stitched", "simple", "real"):
            faster = _under_muon(tuned[stream])
            yield from (replace(run, seed=seed) for run in (faster if not seed else faster[:1]))


def copying(tuned: Tuned) -> Iterator[Run]:
    """Under Muon without attention from one text to another: is stitched behind because its siblings can be copied?"""
    for stream in ("stitched", "simple"):
        for run in _under_muon(tuned[stream])[:1]:
            yield changed(run, "masked", {"model.cross_document_attention": "false"})


def _under_muon(run: Run) -> list[Run]:
    """At the learning rates above the run's own, the next one first."""
    other = changed(run, "muon", {"model.optimizer.name": "muon"})
    return [replace(other, learning_rate=rate) for rate in GRID["learning_rate"] if rate > run.learning_rate]


def subsets(tuned: Tuned) -> Iterator[Run]:
    """What is more real data worth? Nested sets of documents, real only."""
    for fraction in (0.25, 0.0625, 0.5):
        yield changed(tuned["real"], f"fraction {fraction:g}", {"data.real_fraction": f"{fraction:g}"})


def epochs(tuned: Tuned) -> Iterator[Run]:
    """Is the best number of real epochs unchanged by rephrases? Beyond the search's budget."""
    for factor in (2, 4):
        yield from _longer(tuned, factor)
    for factor in (2, 4):
        for seed in range(1, MEMBERS):
            yield from (replace(run, seed=seed) for run in _longer(tuned, factor))


def longer(tuned: Tuned) -> Iterator[Run]:
    """At twice the epochs: are another decay or rate better, and does stitching act through the attention there?"""
    runs = _longer(tuned, 2)
    for axis in ("weight_decay", "learning_rate"):
        for run in runs:
            yield from neighbours(run, axis, run.passes)
    for run in runs:
        yield changed(run, "masked", {"model.cross_document_attention": "false"})


def longer_generations(tuned: Tuned) -> Iterator[Run]:
    """Is the loss monotone in G at twice the epochs, and with the most at four times?"""
    for seed in range(MEMBERS):
        for count in (11, 1):
            yield from (replace(run, generations=count, seed=seed) for run in _longer(tuned, 2))
    yield from (replace(run, generations=11) for run in _longer(tuned, 4))


def wsd(tuned: Tuned) -> Iterator[Run]:
    """Is WSD better than cosine for both streams, and at twice the epochs, too?"""
    for seed in range(MEMBERS):
        for run in (tuned["stitched"], tuned["simple"], *_longer(tuned, 2)):
            yield replace(changed(run, "wsd", {"model.schedule.name": "wsd"}), seed=seed)


def _longer(tuned: Tuned, factor: int) -> list[Run]:
    """Both streams with so many times the epochs."""
    return [replace(tuned[stream], epochs=factor * tuned[stream].epochs) for stream in ("stitched", "simple")]


def mixes(tuned: Tuned) -> Iterator[Run]:
    """Does too large a synthetic share overfit? The number of training tokens stays the same."""
    for mix, share in ((0.5, 2.0), (0.9, 0.4)):
        for stream in ("stitched", "simple"):
            run = tuned[stream]
            yield replace(run, mix=mix, epochs=run.epochs * share)


def repeats(tuned: Tuned) -> Iterator[Run]:
    """Do further seeds say the same of generations, orders, shares and windows?"""
    for group in (generations, order, mixes, window):
        for seed in range(1, MEMBERS):
            yield from (replace(run, seed=seed) for run in group(tuned))


def steps(tuned: Tuned) -> Iterator[Run]:
    """One change each, against a stitched run in the paper's order of epochs."""
    run = tuned["stitched"]
    paper = changed(run, "paper order", {"data.epoch_order": "paper"})
    yield paper
    falling, rising = (json.dumps([_phase(first), _phase(2 * run.mix - first)]) for first in (0.9, 0.6))
    faster = [rate for rate in GRID["learning_rate"] if rate > run.learning_rate][:1]
    steps: dict[str, dict[str, str]] = {"muon": {"model.optimizer.name": "muon"}}
    for rate in faster:
        steps["muon faster"] = {"model.optimizer.name": "muon", "model.learning_rate": f"{rate:g}"}
    steps |= {
        "weight averaging": {"trainer.callbacks+": "EMAWeightAveraging", "trainer.callbacks.decay": "0.99"},
        "decay rising": {"model.final_weight_decay": f"{2 * run.weight_decay:g}"},
        "decay falling": {"model.final_weight_decay": "0"},
        "synthetic first": {"data.phases": falling},
        "synthetic last": {"data.phases": rising},
        "dropout": {"model.regularization.dropout": "0.1"},
        "stochastic depth": {"model.regularization.stochastic_depth": "0.1"},
        "wsd": {"model.schedule.name": "wsd"},
    }
    found = {name: changed(paper, name, settings) for name, settings in steps.items()}
    yield from found.values()
    for seed in range(1, MEMBERS):
        yield from (replace(run, seed=seed) for run in (paper, *(found[name] for name in REPEATED if name in found)))
    # Documents permuted anew each epoch, which is the default, and inside a megadoc its generations, too.
    yield run
    yield changed(run, "megadoc order drawn", {"data.megadoc_order": "drawn"})


def distillation(tuned: Tuned) -> Iterator[Run]:
    """Do soft labels of one model, or of an ensemble, add to rephrases?"""
    for stream in ("real", "stitched", "simple"):
        run = tuned[stream]
        for name, teachers in (("one teacher", seeded(run)[:1]), (f"{MEMBERS} teachers", seeded(run))):
            # A seed of its own, so that the student does not begin where its teacher did.
            student = replace(run, seed=MEMBERS, teachers=tuple(teachers))
            yield changed(student, name, {})


def students(tuned: Tuned) -> Iterator[Run]:
    """Does self-distillation add to ensembles? Students of one teacher, as members."""
    for student in distillation(tuned):
        # Of the two streams with rephrases the better one says enough.
        if student.stream != "stitched" and len(student.teachers) == 1:
            for seed in range(MEMBERS, 2 * MEMBERS):
                yield replace(student, seed=seed)


def hard_labels(tuned: Tuned) -> Iterator[Run]:
    """Are a teacher's samples worth as much as its soft labels? Real only, in a simple stream's place and settings."""
    for seed in range(MEMBERS, 2 * MEMBERS):
        student = replace(tuned["simple"], stream="samples", seed=seed, teachers=(tuned["real"],))
        # Settings are the simple stream's, so its name says nothing of whose samples they are.
        yield changed(student, f"hard labels of {tuned['real'].name}", {})


def larger(tuned: Tuned) -> Iterator[Run]:
    """Do a fourth and a fifth member still add to an ensemble?"""
    for seed in range(MEMBERS, MOST_MEMBERS):
        for run in tuned.values():
            yield replace(run, seed=seed)


def members(tuned: Tuned) -> Iterator[Run]:
    """Members for ensembles have twice the epochs and half the weight decay of the best single model (the paper's)."""
    for seed in range(MEMBERS):
        for run in tuned.values():
            yield replace(run, epochs=2 * run.epochs, weight_decay=run.weight_decay / 2, seed=seed)


def ensembles(tuned: Tuned) -> dict[str, list[Run]]:
    """Averages that are worth measuring: their names and members, of which the first three say enough to begin with."""
    found = {run.name: seeded(run, MOST_MEMBERS) for run in tuned.values()}
    found |= {run.name: seeded(run) for run in members(tuned) if not run.seed}
    for run in students(tuned):
        found.setdefault(replace(run, seed=0).name, []).append(run)
    return found


def seeded(run: Run, count: int = MEMBERS) -> list[Run]:
    """The run with each of the first seeds."""
    return [replace(run, seed=seed) for seed in range(count)]


def _phase(fraction: float) -> dict[str, float]:
    """Half of the run with that share of windows from the synthetic stream."""
    return {"share": 0.5, "synthetic_fraction": round(fraction, 3)}


# Cheapest and most informative first.
GROUPS: dict[str, Group] = {
    function.__name__: function
    for function in (
        search,
        seeds,
        generations,
        order,
        batch,
        mask,
        steps,
        subsets,
        distillation,
        window,
        muon,
        copying,
        epochs,
        longer,
        longer_generations,
        wsd,
        students,
        hard_labels,
        larger,
        members,
        mixes,
        repeats,
    )
}
