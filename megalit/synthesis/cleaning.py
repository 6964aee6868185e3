"""What is taken off a completion, and which generations are kept."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from megalit.errors import UserError, missing_extra
from megalit.synthesis.items import Rejected
from megalit.synthesis.requests import Completion, Request
from megalit.synthesis.text import ngrams, trim_to_sentence, words

# "Sure! Here is the rewritten text:" and the like, which chat models put before what was asked for.
# The line must speak of the task: ordinary texts begin with "Here are the ingredients:", too.
_TASK = r"(?:re-?writ|rephras|paraphras|re-?told|retell|version|summar|conversation|revis|the text|your text|thoughts)"
_PREAMBLE = re.compile(
    r"\A\s*(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n]{0,40}?[!.,:]\s*)?"
    r"(?:(?:here(?:'s|’s| is| are)|below (?:is|are)|this is|the following (?:is|are))\b"
    rf"(?=[^\n]*{_TASK})[^\n]{{0,160}}:\s*\n"
    r"|(?:sure|certainly|of course|okay|ok|absolutely)[!.,:]\s*\n)",
    re.IGNORECASE,
)
_DECLINE = (
    r"(?:help|assist|rewrite|rephrase|paraphrase|provide|fulfil|comply|create|generate|write|do (?:that|this|it))"
)
_REFUSAL = re.compile(
    r"\A\s*(?:"
    r"(?:(?:i['’]?m|i am) (?:very )?(?:sorry|afraid)|sorry|unfortunately|i apologi[sz]e)\b,?(?: but)?,? "
    r"i(?:['’]m| am)? ?(?:can(?:no|['’])t|can not|am unable|unable|not able|won['’]t|will not|do(?:n['’]t| not))\b"
    rf"|i (?:can(?:no|['’])t|can not|won['’]t|will not|am unable to|am not able to) {_DECLINE}\b"
    rf"|i['’]m (?:unable|not able) to {_DECLINE}\b"
    r"|as an? (?:ai|artificial intelligence|large language|language)(?: language)?(?: model| assistant)?, i\b"
    r"|as an? (?:ai |large )?(?:language model|assistant)\b)",
    re.IGNORECASE,
)
# What a reasoning model says to itself before it answers stands between these.
THINKING, ANSWERING = "<think>", "</think>"
# gpt-oss thinks and answers in channels instead (OpenAI's harmony format). Of a server that leaves special tokens out
# only the channels' names are left, glued to the text behind them.
_CHANNELS = re.compile(r"\A\s*(?:<\|channel\|>|analysis(?=[A-Z]))")
_FINAL = re.compile(r"<\|channel\|>final[^<]{0,40}<\|message\|>|assistantfinal")
_FINAL_ENDS = re.compile(r"<\|(?:return|end|endoftext)\|>")
# Why a completion is rejected that holds a thought and no answer.
UNFINISHED = "ends within the model's thoughts"
_RUN = 8  # words
# A text of fewer words says little about itself.
_LOOP_FROM = 50


@dataclass(frozen=True)
class Cleaning:
    """What is taken off completions, and what a generation must be to be kept.

    Attributes:
        truncated: a completion that the length limit cut is kept, trimmed to its last whole sentence, or rejected.
        preambles: take off what a chat model says before the text ("Here is the rewritten text:").
        refusals: reject completions in which the model declines.
        min_words: a generation of fewer is rejected. In scripts without spaces each letter counts as a word, here and
            below.
        max_words: a generation of more is rejected; null allows any length.
        copy_threshold: a generation whose ROUGE-L F1 with its document is above is a copy and rejected (ROUGE,
            Lin 2004; on words); null allows copies.
        repetition_threshold: a generation in which more than that share of the runs of 8 words have stood there
            before is a loop and rejected (in the manner of Gopher's filters, arXiv 2112.11446, appendix A); null
            allows loops.
        language: ISO 639-1 code; generations in another one are rejected. Null (the default) does not look.
    """

    truncated: Literal["keep", "trim", "reject"] = "trim"
    preambles: bool = True
    refusals: bool = True
    min_words: int = 5
    max_words: int | None = None
    copy_threshold: float | None = 0.9
    repetition_threshold: float | None = 0.3
    language: str | None = None

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: a threshold outside [0, 1], a language that is not known, or one that cannot be recognised.
        """
        for name in ("copy_threshold", "repetition_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"cleaning.{name} is {value}: choose a value in [0, 1], or null")
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"cleaning.max_words is {self.max_words} and min_words {self.min_words}: mend one of them")
        if self.language is not None:
            known = sorted(language for language, _ in _identifier().rank("text"))
            if self.language not in known:
                raise UserError(f"cleaning.language '{self.language}' is not known: choose one of {', '.join(known)}")

    def clean(self, completion: Completion) -> str | Rejected:
        """A completion's text without what does not belong to it, or why it is worth nothing."""
        text = completion.text
        if completion.finish == "length":
            # Half a character, which a cut between two tokens leaves, is decoded as U+FFFD.
            text = text.rstrip("\ufffd")
        if completion.finish == "length" and self.truncated != "keep":
            if self.truncated == "reject":
                return Rejected("cut at the length limit")
            text = trim_to_sentence(text)
            if not text.strip():
                return Rejected("cut at the length limit")
        if self.preambles:
            text = _PREAMBLE.sub("", text, count=1)
        if self.refusals and _REFUSAL.match(text):
            return Rejected("refusal")
        return text

    def problem(self, text: str, source: str | None) -> str | None:
        """Why a finished generation is not kept; None where it is.

        Args:
            text: the generation.
            source: the document that it is made from.
        """
        if not text.strip():
            return "empty"
        found = words(text)
        if len(found) < self.min_words:
            return "too short"
        if self.max_words is not None and len(found) > self.max_words:
            return "too long"
        if self.repetition_threshold is not None and repetition(found) > self.repetition_threshold:
            return "repetition"
        if source is not None and self.copy_threshold is not None and rouge_l(text, source) > self.copy_threshold:
            return "copy of the document"
        if self.language is not None and _identifier().classify(text)[0] != self.language:
            return "other language"
        return None


def answer(completion: Completion, request: Request) -> Completion | Rejected:
    """A completion without what a reasoning model thinks before it; a thought that does not end is no answer.

    A completion that has the end of a thought only was begun by its template, unless the request speaks of that mark:
    then the text may do so, too.
    """
    text = completion.text
    if _CHANNELS.match(text):
        final = _FINAL.search(text)
        if final is None:
            return Rejected(UNFINISHED)
        return replace(completion, text=_FINAL_ENDS.split(text[final.end() :], maxsplit=1)[0].lstrip())
    thought, mark, rest = text.partition(ANSWERING)
    begins = thought.lstrip().startswith(THINKING)
    if mark and (begins or ends_unopened_thought(text, request)):
        return replace(completion, text=rest.lstrip())
    return Rejected(UNFINISHED) if begins else completion


def ends_unopened_thought(text: str, request: Request) -> bool:
    """Whether a text has the end of a thought without its beginning, and the request does not speak of that mark."""
    before, mark, _ = text.partition(ANSWERING)
    return bool(mark) and THINKING not in before and all(ANSWERING not in turn.content for turn in request.messages)


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L F1 of two texts' words: twice their longest common subsequence over the sum of their lengths."""
    from rapidfuzz.distance import Indel

    # The insertions and deletions between two sequences are what is outside their common subsequence.
    return Indel.normalized_similarity(words(one), words(other))


def repetition(found: list[str]) -> float:
    """Share of the runs of 8 words that have stood in the text before; 0 for a short text."""
    if len(found) < _LOOP_FROM:
        return 0.0
    counts = Counter(ngrams(found, _RUN))
    total = counts.total()
    return (total - len(counts)) / total


@cache
def _identifier() -> Any:
    try:
        import py3langid
    except ImportError as error:
        raise missing_extra("py3langid", "language", "cleaning.language") from error
    return py3langid
