"""``megalit generate``: documents in, generations out, exactly once."""

import asyncio
import datetime
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from megalit.cli.commands import parse
from megalit.cli.console import Step, console
from megalit.cli.generate_status import print_status
from megalit.corpus.tables import Corpus
from megalit.differences import differences
from megalit.errors import UserError
from megalit.files import lock, read_json, visible, write_json
from megalit.preemption import lock_patience
from megalit.synthesis import recipes  # noqa: F401 (so that their short names are known)
from megalit.synthesis.cleaning import Cleaning
from megalit.synthesis.compaction import MANIFEST, Compacted, compact
from megalit.synthesis.engines import Engine
from megalit.synthesis.finished import check_documents, check_not_fewer
from megalit.synthesis.generating import Generator
from megalit.synthesis.items import Recipe, TokenCounter
from megalit.synthesis.recipes import TokenNoise
from megalit.synthesis.report import make_report, plot_report, report_lines
from megalit.synthesis.requests import Sampling
from megalit.synthesis.status import StatusFile
from megalit.synthesis.work import Counts, Shard, Work

# What the generations in a folder are made with; another folder holds those of another recipe or model.
WORK = "generate.json"
# So many seconds after an engine died of a signal, this process has heard it, too.
_HEARD_AFTER = 0.5

HELP = """
Recipes: Rephrase, CritiqueAndRevise, LatentThoughts, Unconditional, TokenNoise, or a class path of your own.
Engines: Vllm, OpenAI, Transformers, Scripted.
The same command continues after an interruption; with a higher `generations` it adds what is missing.
"""


@dataclass(frozen=True)
class GenerateCommand:
    """Make generations of a corpus' training documents with a language model, ready for ``megalit tokenize``.

    Attributes:
        recipe: what is asked for.
        engine: who answers.
        corpus: folder that `megalit corpus` wrote; samples need none.
        output: folder of the generations, shared by all shards.
        generations: how many of each document, or how many samples.
        total_tokens: samples are drawn until they have so many tokens, instead of a number of them.
        sampling: how completions are drawn.
        cleaning: what is taken off completions, and which generations are kept.
        attempts: tries that each request of a generation has before the generation is given up.
        shard: `i/n` makes the generations of every n-th document only, from number i on, for job arrays.
        redo: make again what was made with other settings of sampling or cleaning.
        retry_refused: try again what the model refused for its length or by a filter, once it is served otherwise.
        drop_absent: take out of the finished table what was made of documents that the corpus does not have (any more).
        status: say how far all shards are, and make nothing.
    """

    recipe: Recipe | None = None
    engine: Engine | None = None
    corpus: str = "data/corpus"
    output: str = "data/generations"
    generations: int = 4
    total_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    cleaning: Cleaning = field(default_factory=Cleaning)
    attempts: int = 3
    shard: str = "0/1"
    redo: bool = False
    retry_refused: bool = False
    drop_absent: bool = False
    status: bool = False


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit generate``."""
    command = parse(verb, GenerateCommand, arguments, HELP)
    output = Path(command.output)
    if command.status:
        print_status(output)
        return
    work = _work(command)
    shard = Shard.parse(command.shard)
    corpus = None if work.recipe.kind == "samples" else Corpus(Path(command.corpus))
    made_with = {"recipe": work.version, "model": work.model, "kind": work.recipe.kind}
    if not (output / WORK).exists():
        # A folder is its model's from here on, and a model's name is easily mistyped. Not under the lock: loading may
        # take long, and may fail in every shard.
        work.engine.open()
    with lock(output / WORK):
        _same_work(made_with, output)
    check_not_fewer(work, output)
    if corpus is not None and (said := check_documents(corpus, output, command.drop_absent)):
        console.print(said)
    with _alone(output, shard):
        had_work = _generate(work, corpus, output, shard)
    compacted = _compact(work, corpus, output)
    if not had_work and not compacted.missing:
        console.print(f"{output} is finished: {compacted.rows:,} generations; a higher `generations` adds more")
    if compacted.refused:
        console.print(
            f"{compacted.refused:,} generations were refused by the model, for their length or by a filter: once it "
            "takes them, with a longer context for example, --retry_refused tries them again"
        )
    if compacted.missing:
        # How many samples it takes to so many tokens is not known before they are made.
        left = "samples" if work.total_tokens is not None else f"{compacted.missing:,} generations"
        console.print(f"shard {shard} is done; other shards have {left} still to make")
    else:
        _report(compacted, corpus, output, work.engine)
        print(output)


def _work(command: GenerateCommand) -> Work:
    if command.recipe is None or command.engine is None:
        raise UserError("recipe and engine are not both named: see configs/generate/ for examples")
    samples = command.recipe.kind == "samples"
    if command.generations < 1 or command.attempts < 1:
        raise UserError("generations and attempts are not both at least 1: mend them")
    if command.total_tokens is not None and (not samples or command.total_tokens < 1):
        raise UserError("total_tokens bounds samples without a document and is positive: leave it out, or mend it")
    if isinstance(command.recipe, TokenNoise) and command.recipe.count != TokenNoise.count:
        raise UserError("recipe.count is how many a preparation makes: say it with `generations`")
    command.recipe.check()
    command.sampling.check()
    command.cleaning.check()
    return Work(
        recipe=command.recipe,
        engine=command.engine,
        sampling=command.sampling,
        cleaning=command.cleaning,
        count=command.generations,
        total_tokens=command.total_tokens,
        attempts=command.attempts,
        redo=command.redo,
        retry_refused=command.retry_refused,
    )


def _same_work(asked: dict[str, str], output: Path) -> None:
    """Remember what a folder's generations are made with, or compare with what they were."""
    path = output / WORK
    if path.exists():
        for key, then, now in differences(read_json(path), asked):
            raise UserError(
                f"{output} holds generations with {key} {then!r}, and {now!r} is asked for: "
                "choose another output (what is there stays as it is)"
            )
        return
    if output.is_file() or visible(output):
        raise UserError(f"{output} is there and was not made by `megalit generate`: choose another output")
    write_json(path, asked)


def _alone(output: Path, shard: Shard) -> AbstractContextManager[None]:
    """Keep out other processes of this shard, which would make everything a second time.

    Another division's shards may help; what they make at the same time as this one is made twice and stands once.

    Raises:
        UserError: another process makes this shard.
    """
    busy = f"another process makes shard {shard} of {output}: wait for it, or help it with another division (--shard)"
    return lock(output / "journal" / f"shard-{shard.number}-of-{shard.of}", busy=busy, patience=lock_patience())


def _generate(work: Work, corpus: Corpus | None, output: Path, shard: Shard) -> bool:
    """Make what is missing of a shard; whether anything was."""
    status = StatusFile(output, shard)
    is_at_work = False
    with Step(f"generating, shard {shard}" if shard.of > 1 else "generating") as shown:

        def progress(now: Counts) -> None:
            if is_at_work:
                status.update(now)
            if shown.is_time:
                shown.say(_progress_text(status.figures(now)))

        generator = Generator(work, corpus, output / "journal", shard, progress)
        counts = generator.counts
        is_at_work = generator.has_work()
        for line in generator.made_otherwise():
            console.print(line)
        if not is_at_work:
            status.settle(counts)
            return False
        status.update(counts)
        console.print(f"loading {work.model}")
        try:
            asyncio.run(_until_told(generator))
        except asyncio.CancelledError as error:
            status.update(counts, "stopped")
            raise KeyboardInterrupt from error
        except BaseException:
            status.update(counts, "stopped")
            raise
    status.update(counts, "finished")
    console.print(f"shard {shard}: {_progress_text(status.figures(counts))}")
    return True


async def _until_told(generator: Generator) -> None:
    """Work until it is done, or until the process is told to end: the engine's own processes end with it."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_told = False

    def end() -> None:
        nonlocal is_told
        is_told = True
        task.cancel()

    def interrupt(asyncios: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        nonlocal is_told
        is_told = True
        asyncios(number, frame)  # it cancels the task, and a second time waits for no loop that loads a model

    loop.add_signal_handler(signal.SIGTERM, end)
    before = signal.getsignal(signal.SIGINT)
    if callable(before):
        signal.signal(signal.SIGINT, partial(interrupt, before))
    try:
        await generator.run()
    except Exception as error:
        # The signal comes to the engine's processes, too, and maybe to them first, or while the loop stood still and a
        # model was loaded: an engine that dies of it is no mistake of the user's.
        await asyncio.sleep(_HEARD_AFTER)
        if is_told:
            raise asyncio.CancelledError from error
        raise
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)


def _progress_text(figures: dict[str, Any]) -> str:
    total = f" of {figures['total']:,}" if figures["total"] is not None else ""
    left = figures["seconds_left"]
    return (
        f"{figures['done']:,}{total} generations, {sum(figures['declined'].values()):,} attempts declined, "
        f"{figures['tokens']:,} tokens, {figures['tokens_per_second']:,.0f} tokens/s"
        + (f", {datetime.timedelta(seconds=left)} left" if left else "")
    )


def _compact(work: Work, corpus: Corpus | None, output: Path) -> Compacted:
    with Step("writing the table") as shown:
        return compact(work, corpus, output, lambda rows: shown.update(rows, "generations"))


def _report(compacted: Compacted, corpus: Corpus | None, output: Path, engine: Engine) -> None:
    path = output / "report.json"
    if not path.exists() or path.stat().st_mtime < (output / MANIFEST).stat().st_mtime:
        report = make_report(compacted, corpus, output, _token_counter(engine))
        plot_report(report, output / "report.png")
        write_json(path, report)
    for line in report_lines(read_json(path)):
        console.print(line)
    if not compacted.rows:
        raise UserError("no generation was accepted: look at the reasons above and at sampling, cleaning and recipe")


def _token_counter(engine: Engine) -> TokenCounter | None:
    """What counts the tokens of a text, where the engine can; a model that has gone since costs no report."""
    try:
        engine.open()
    except UserError:
        return None
    return engine.count_tokens if engine.counts_tokens else None
