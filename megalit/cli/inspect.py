"""``megalit inspect``: what a store or a configuration's streams hold."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from megalit.cli.commands import with_switches
from megalit.cli.console import Step
from megalit.cli.fit_config import WithoutTrainer, parse_fit
from megalit.cli.parsing import in_one_line
from megalit.corpus.tokenizers import Tokenizer
from megalit.errors import UserError
from megalit.scaling.stream_plots import plot_streams
from megalit.streams.building import verify
from megalit.streams.inspection import (
    PieceInWindow,
    megadoc_lengths,
    mixture_lines,
    store_lines,
    window_of_sample,
)
from megalit.streams.mixture import Mixture
from megalit.streams.remote import is_remote, local_stores
from megalit.streams.store import TokenStore, exists
from megalit.streams.store_set import open_stores
from megalit.streams.unigrams import (
    Unigrams,
    comparison_lines,
    unigrams_of_run,
    unigrams_of_stores,
    unigrams_of_stream,
)

_UNIGRAMS = "Compare the unigrams of training and held-out texts: divergence, coverage, rare tokens, distinct n-grams."
# Windows drawn by --plot.
_SHOWN_WINDOWS = 16


def main(verb: str, arguments: Sequence[str]) -> None:
    """``megalit inspect STORE`` or ``megalit inspect CONFIG``."""
    arguments = with_switches(arguments, ("--verify", "--unigrams"))
    target = _positional(arguments)
    if target is not None and not is_remote(target) and not Path(target).exists():
        raise UserError(f"{target} does not exist: name a store, a folder of stores or a configuration")
    with in_one_line():
        if target is not None and Path(target).is_file():
            others = list(arguments)
            others.remove(target)
            _inspect_configuration(["--config", target, *others])
        elif target is None and {"-c", "--config", "--print_config"}.intersection(arguments):
            _inspect_configuration(arguments)
        else:
            _inspect_stores(arguments)


def _positional(arguments: Sequence[str]) -> str | None:
    """The first argument that is neither a flag nor a flag's value."""
    for before, argument in pairwise(["", *arguments]):
        is_value = before.startswith("-") and "=" not in before and before not in ("--print_config", "--help", "-h")
        if not argument.startswith("-") and not is_value:
            return argument
    return None


# Stores ------------------------------------------------------------------------------------------------


def _inspect_stores(arguments: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="megalit inspect",
        description="Show what a store holds, or (for a configuration) what a run's streams hold; with a "
        "configuration, --window N, --plot FILE and every setting of `megalit fit` are known too.",
        exit_on_error=False,
    )
    parser.add_argument("target", type=str, help="A store, a folder of stores or its URL, or a configuration (YAML).")
    parser.add_argument("--verify", type=bool, default=False, help="Read every token and compare with the manifest.")
    parser.add_argument("--unigrams", type=bool, default=False, help=_UNIGRAMS)
    parser.add_argument("--config", type=str, help="A configuration; the same as naming it as target.")
    parser.add_argument("--print_config", action="store_true", help="Print the resolved configuration.")
    settings = parser.parse_args(list(arguments))
    if settings.config is not None or settings.print_config:
        raise UserError(f"{settings.target} is a store, of which no configuration is read: name one of the two")
    folder = local_stores(settings.target)
    found = [TokenStore(folder)] if exists(folder) else list(open_stores(folder).all)
    for store in found:
        print("\n".join(store_lines(store)))
        if settings.verify:
            with Step(f"verifying {store.folder}"):
                verify(store.folder)
            print("  verified: items, tokens and content are what the manifest says")
    if settings.unigrams:
        _print_unigrams(found, [_unigrams_of_stores([store]) for store in _training(found)])


# Configurations ----------------------------------------------------------------------------------------


class InspectCLI(WithoutTrainer):
    """Parses what ``fit`` parses and looks at the data only."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--window", type=int, help="Show the window at this place of the run, piece by piece.")
        parser.add_argument("--plot", type=str, help="Draw megadoc lengths and the first windows to this PNG file.")
        parser.add_argument("--verify", type=bool, default=False, help="Read every token of the stores.")
        parser.add_argument("--unigrams", type=bool, default=False, help=_UNIGRAMS)


def _inspect_configuration(arguments: Sequence[str]) -> None:
    cli = parse_fit(InspectCLI, arguments)
    cli.prepare_data(cli.config_init)
    mixture: Mixture = cli.datamodule.mixture
    for store in mixture.all_stores:
        print("\n".join(store_lines(store)))
        if cli.config_init.verify:
            verify(store.folder)
            print("  verified: items, tokens and content are what the manifest says")
    print("\n".join(mixture_lines(mixture)))
    if cli.config_init.unigrams:
        vocabulary = mixture.plan.vocabulary_size
        texts = []
        for stream in mixture.streams:
            with Step(f"counting the tokens of {stream.name}") as step:
                texts.append(unigrams_of_stream(stream, vocabulary, progress=step.update))
        run = unigrams_of_run([(text, part.epochs) for text, part in zip(texts, mixture.plan.streams, strict=True)])
        _print_unigrams(mixture.stores.all, [*texts, run])
    if cli.config_init.window is not None:
        _print_window(mixture, cli.config_init.window)
    if cli.config_init.plot is not None:
        _plot(mixture, Path(cli.config_init.plot))
    mixture.forget_plans()


def _training(stores: Sequence[TokenStore]) -> list[TokenStore]:
    return [store for store in stores if store.manifest.kind != "validation"]


def _print_unigrams(stores: Sequence[TokenStore], texts: Sequence[Unigrams]) -> None:
    held_out = [store for store in stores if store.manifest.kind == "validation"]
    if not held_out or not texts:
        raise UserError("unigrams compare training texts with held-out ones: name a folder of stores that has both")
    print("\n".join(comparison_lines(texts, _unigrams_of_stores(held_out))))


def _unigrams_of_stores(stores: Sequence[TokenStore]) -> Unigrams:
    name = stores[0].folder.name
    with Step(f"counting the tokens of {name}") as step:
        return unigrams_of_stores(name, stores, progress=step.update)


def _print_window(mixture: Mixture, sample: int) -> None:
    folder = mixture.stores.tokenizer
    tokenizer = Tokenizer(str(folder)) if folder is not None else None
    stream, epoch, window, found = window_of_sample(mixture, sample)
    tables = next(part.tables for part in mixture.streams if part.name == stream)
    print(f"\nsample {sample} of the run: window {window} of epoch {epoch} of {stream}")
    for piece in found:
        text = tokenizer.decode(piece.tokens) if tokenizer is not None else str(piece.tokens)
        generation = "" if piece.generation is None else f", generation {piece.generation}"
        recipe = "" if piece.generation is None else f" by {tables.recipe(piece.row)}"
        print(f"[{piece.name}{generation}{recipe}, tokens {piece.start}-{piece.stop}]\n{text}")


def _plot(mixture: Mixture, path: Path) -> None:
    windows = []
    for sample in range(min(_SHOWN_WINDOWS, mixture.schedule.samples)):
        stream, _, window, found = window_of_sample(mixture, sample)
        windows.append((f"{sample}: {stream} {window}", [(_kind(stream, piece), len(piece.tokens)) for piece in found]))
    lengths = {stream.name: megadoc_lengths(stream) for stream in mixture.streams}
    plot_streams(lengths, mixture.settings.context_length, windows, path)
    print(f"drawn to {path}")


def _kind(stream: str, piece: PieceInWindow) -> str:
    if piece.literal:
        return "literal"
    if piece.generation is None:
        return "real"
    return "thought" if stream == "latent_thoughts" else "generation"
