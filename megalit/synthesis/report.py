"""What a set of generations is like: accepted share, lengths, and how much of it is new."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from megalit.corpus.tables import TRAIN, Corpus
from megalit.files import write_png
from megalit.synthesis.compaction import TABLE, Compacted
from megalit.synthesis.items import TokenCounter
from megalit.synthesis.text import ngrams, words

PERCENTILES = (5, 25, 50, 75, 95)
RUN = 4
# N-grams are compared for so many documents, spread evenly: enough for three digits.
_DOCUMENTS = 2000
# Tokens are counted in so many generations, spread evenly.
_COUNTED = 2000


def make_report(
    compacted: Compacted, corpus: Corpus | None, folder: Path, count_tokens: TokenCounter | None = None
) -> dict[str, Any]:
    """Figures on the generations in ``folder``, as JSON.

    ``tokens`` and ``tokens_percentiles`` are what the model wrote for them: thoughts, drafts and reviews, too.
    ``text_tokens_percentiles`` are the generations' own lengths, as ``count_tokens`` counts them; empty without it.
    ``cut_share`` is the share of generations of which the limit cut a part; None where the journal does not say so.
    ``new_against_document`` is the mean share of a generation's 4-grams of words that its document does not have;
    ``new_among_siblings`` has, for the first, second, … generation of a document, the mean share of 4-grams that
    neither the document nor an earlier sibling has. What falls towards 0 there is the diversity that mode collapse
    takes first.
    """
    tokens, prompt_tokens, lengths = [], 0, []
    own_tokens, cut = [], []
    stride = max(1, compacted.rows // _COUNTED)
    for number, row in enumerate(_rows(folder, ["tokens", "prompt_tokens", "text", "cut"])):
        if count_tokens is not None and number % stride == 0:
            own_tokens.append(count_tokens(row["text"]))
        if row.get("cut") is not None:
            cut.append(row["cut"])
        tokens.append(row["tokens"])
        prompt_tokens += row["prompt_tokens"]
        lengths.append(len(words(row["text"])))
    declined = sum(compacted.declined.values())
    made = compacted.rows + declined
    against, among, documents = _novelty(corpus, folder)
    return {
        "accepted": compacted.rows,
        "declined_attempts": declined,
        "declined_by_reason": compacted.declined,
        "accept_rate": compacted.rows / made if made else None,
        "given_up": compacted.given_up,
        "prompt_tokens": prompt_tokens,
        "tokens": int(sum(tokens)),
        "tokens_percentiles": _percentiles(tokens),
        "text_tokens_percentiles": _percentiles(own_tokens),
        "cut_share": sum(cut) / len(cut) if cut else None,
        "words_percentiles": _percentiles(lengths),
        "document_words_percentiles": _percentiles(documents),
        "ngram": RUN,
        "new_against_document": against,
        "new_among_siblings": among,
    }


def _rows(folder: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in Corpus.batches(folder / TABLE, TRAIN, columns):
        yield from batch


def _percentiles(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    return {str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def _novelty(corpus: Corpus | None, folder: Path) -> tuple[float | None, list[float | None], list[int]]:
    """New 4-grams against the document, among siblings by place, and the documents' lengths in words."""
    if corpus is None:
        return None, [], []
    stride = max(1, corpus.manifest["documents"][TRAIN] // _DOCUMENTS)
    documents = enumerate(corpus.rows("documents", TRAIN, ["id", "text"]))
    against: list[float] = []
    among: list[list[float]] = []
    lengths: list[int] = []
    place, document = next(documents)
    # The table is in the order of the documents, so one pass over both suffices.
    for identifier, group in groupby(_rows(folder, ["document_id", "text"]), key=lambda row: row["document_id"]):
        while document["id"] != identifier:
            place, document = next(documents)
        if place % stride:
            continue
        source = words(document["text"])
        lengths.append(len(source))
        known = set(ngrams(source, RUN))
        seen = set(known)
        for number, row in enumerate(group):
            own = set(ngrams(words(row["text"]), RUN))
            if number == len(among):
                among.append([])
            if not own:
                continue
            against.append(len(own - known) / len(own))
            among[number].append(len(own - seen) / len(own))
            seen |= own
    return (
        float(np.mean(against)) if against else None,
        [float(np.mean(part)) if part else None for part in among],
        lengths,
    )


def report_lines(report: dict[str, Any]) -> list[str]:
    """A report in words."""
    lines = [f"{report['accepted']:,} generations, {report['tokens']:,} tokens from {report['prompt_tokens']:,} read"]
    if report["accept_rate"] is not None:
        lines.append(f"{report['accept_rate']:.1%} of attempts accepted, {report['given_up']:,} generations given up")
    lines += [f"  declined: {count:,} {reason}" for reason, count in report["declined_by_reason"].items()]
    for name, label in (
        ("text_tokens_percentiles", "tokens of a generation's text"),
        ("tokens_percentiles", "tokens that the model wrote for one, with thoughts, drafts and reviews"),
    ):
        # Reports of before have no lengths of texts.
        if values := report.get(name):
            lines.append(f"{label}: median {values['50']:,.0f}, 90% from {values['5']:,.0f} to {values['95']:,.0f}")
    if report.get("cut_share"):
        lines.append(f"{report['cut_share']:.1%} of generations were cut at the length limit (sampling.max_tokens)")
    if report["new_against_document"] is not None:
        lines.append(f"{report['new_against_document']:.1%} of {RUN}-word sequences are not in the document")
    among = [share for share in report["new_among_siblings"] if share is not None]
    if len(among) > 1:
        first, last = among[0], among[-1]
        lines.append(f"new in a document's first generation {first:.1%}, in its last {last:.1%}")
    return lines


def plot_report(report: dict[str, Any], path: Path) -> None:
    """Draw lengths and novelty as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=150)
    lengths, novelty = figure.subplots(1, 2)
    for name, label in (("document_words_percentiles", "documents"), ("words_percentiles", "generations")):
        values = report[name]
        if values:
            lengths.plot(list(values.values()), [int(p) for p in values], marker="o", label=label)
    lengths.set(xlabel="length (words)", ylabel="percentile of texts (%)", ylim=(0, 100), title="Lengths")
    lengths.legend()
    among = report["new_among_siblings"]
    novelty.plot(range(1, len(among) + 1), [np.nan if part is None else 100 * part for part in among], marker="o")
    novelty.set(
        xlabel="generation of a document (its number)",
        ylabel=f"new {RUN}-word sequences (%)",
        ylim=(0, 105),
        title="New against the document and earlier generations",
    )
    if among:
        novelty.set_xticks(range(1, len(among) + 1, max(1, len(among) // 8)))
    write_png(path, figure)
