"""From inputs to token stores: what ``fit`` builds for itself, because it is cheap.

Each step writes one folder that appears whole, so a killed preparation continues with the first
missing one. A folder that was built from other settings is never mixed with: that is refused.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megalit.cli.console import Step, console
from megalit.corpus.build import CorpusSettings, build_corpus, input_now
from megalit.corpus.contamination import GuardSettings
from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.corpus.tokenizers import Tokenizer, train_bpe
from megalit.differences import differences
from megalit.errors import UserError
from megalit.files import lock, new_folder, read_json, write_json
from megalit.synthesis.recipes.token_noise import TokenNoise, generate_token_noise


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer makes the tokens.

    Attributes:
        name: a folder with tokenizer.json, or a name on the Hugging Face hub; null trains a
            byte-level BPE on the training documents.
        vocabulary_size: of the tokenizer that is trained.
    """

    name: str | None = None
    vocabulary_size: int = 4096


@dataclass(frozen=True)
class PrepareSettings:
    """Corpus, token noise and token stores, built in one folder where they are missing.

    Attributes:
        folder: where they go; null builds nothing, and ``data.stores`` names finished stores.
        corpus: the documents.
        token_noise: makes generations of the training documents without a model; null makes none.
        generations: folders that `megalit generate` wrote, of generations, thoughts or samples.
        tokenizer: encodes everything.
        guard: looks for passages of validation documents in the training text.
    """

    folder: str | None = None
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    token_noise: TokenNoise | None = None
    generations: list[str] = field(default_factory=list)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)

    @property
    def stores(self) -> Path:
        """Where the token stores go."""
        assert self.folder is not None
        return Path(self.folder) / "stores"


def is_prepared(settings: PrepareSettings) -> bool:
    """Whether the stores that the settings name are there (`prepare` looks more closely)."""
    names = ["real", *(Path(name).name for name in settings.generations)]
    if settings.token_noise is not None:
        names.append("token_noise")
    return all((settings.stores / name / "manifest.json").exists() for name in names)


def prepare(settings: PrepareSettings) -> None:
    """Build what is missing, once, however many processes ask for it at the same time.

    Raises:
        UserError: a bad input, or a folder that holds something else.
    """
    assert settings.folder is not None
    folder = Path(settings.folder)
    corpus = ensure_corpus(settings.corpus, folder / "corpus")
    generations = [Path(name) for name in settings.generations]
    if settings.token_noise is not None:
        noise = folder / "token_noise"
        _ensure_token_noise(settings.token_noise, corpus, noise)
        generations.append(noise)
    ensure_stores(corpus, generations, settings.tokenizer, settings.guard, settings.stores)


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Whoever builds a folder, by whichever verb, holds the lock of that folder."""
    return lock(folder, waiting=lambda: console.print(f"waiting for another process that builds {folder}"))


def ensure_corpus(settings: CorpusSettings, folder: Path) -> Corpus:
    """Open the corpus at ``folder``, or build it; one process at a time.

    Raises:
        UserError: a bad input, or the folder holds a corpus with other settings or older inputs.
    """
    with _locked(folder):
        if (folder / "manifest.json").exists():
            corpus = Corpus(folder)
            _same_settings(folder, corpus.manifest["settings"], asdict(settings))
            _same_inputs(corpus)
            return corpus
        _refuse_foreign(folder)
        with Step(f"reading documents from {', '.join(settings.inputs)}") as shown:
            corpus = build_corpus(settings, folder, lambda count: shown.update(count, "documents"))
    manifest = corpus.manifest
    counts = manifest["documents"]
    console.print(
        f"corpus: {counts[TRAIN]:,} training and {counts[VALIDATION]:,} validation documents, "
        f"{manifest['generations']:,} generations, {manifest['thoughts']:,} thoughts, "
        f"{manifest['duplicates_removed']:,} exact duplicates removed{_lost_with_duplicates(manifest)}"
    )
    return corpus


def _same_inputs(corpus: Corpus) -> None:
    """Refuse inputs that have changed; those that are copies are known by their new times from now on."""
    recorded: list[dict[str, Any]] = corpus.manifest["inputs"]
    now = [input_now(source) for source in recorded]
    for source, found in zip(recorded, now, strict=True):
        if found is None:
            raise UserError(f"{source['name']} has changed since {corpus.folder} was built: choose another folder")
    if now != recorded:
        # A folder that may not be written is compared again each time, which is only slower.
        with suppress(OSError):
            write_json(corpus.folder / "manifest.json", {**corpus.manifest, "inputs": now})


def _lost_with_duplicates(manifest: dict[str, Any]) -> str:
    lost = [f"{manifest[f'{name}_removed']:,} {name}" for name in ("generations", "thoughts")]
    if not (manifest["generations_removed"] or manifest["thoughts_removed"]):
        return ""
    return f" with {' and '.join(lost)} (to keep them, put all that belongs to a document into the lists of one row)"


def _ensure_token_noise(recipe: TokenNoise, corpus: Corpus, folder: Path) -> None:
    with _locked(folder):
        if (folder / "manifest.json").exists():
            _same_settings(folder, read_json(folder / "manifest.json")["settings"], asdict(recipe))
            return
        _refuse_foreign(folder)
        with Step("token noise") as shown:
            rows = generate_token_noise(recipe, corpus, folder, lambda count: shown.update(count, "generations"))
        console.print(f"token noise: {rows:,} generations, {recipe.count} for each training document")


def ensure_stores(
    corpus: Corpus,
    generations: Sequence[Path],
    settings: TokenizerSettings,
    guard: GuardSettings,
    folder: Path,
) -> None:
    """Build the tokenizer, if it is to be trained, and the stores that are missing; one process at a time."""
    # Imported here: it brings torch along, which `megalit corpus` does without.
    from megalit.streams.building import build_stores
    from megalit.streams.sources import GenerationSet
    from megalit.streams.store_set import set_of

    with _locked(folder):
        sets = [GenerationSet.read(made) for made in generations]
        names = [made.name for made in sets]
        for name in names:
            if names.count(name) > 1 or name in ("real", "validation", "generations", "tokenizer"):
                raise UserError(f"two stores would have the name '{name}': rename the folder of the generations")
            if name.startswith(".") or set_of(name) != (name, 1):
                # Hidden stores are not read, and such numbers are given to what is added to a set later.
                raise UserError(
                    f"a store named '{name}' would be hidden, or a part of another set: rename the folder of the "
                    "generations, with no dot before its name and no number behind one"
                )
        tokenizer = _ensure_tokenizer(corpus, settings, folder / "tokenizer")
        with Step("tokenizing") as shown:
            built = build_stores(
                corpus, sets, tokenizer, folder, guard, lambda name, items: shown.update(items, f"items of {name}")
            )
    for manifest in built:
        console.print(f"tokenized: {manifest.kind}, {manifest.items:,} items, {manifest.tokens:,} tokens")
        found = manifest.contamination
        if found and found["touched"]:
            console.print(
                f"  {found['touched']:,} of {found['texts']:,} share {guard.words}-word sequences with the validation "
                f"set, {len(found['contaminated']):,} in more than {guard.threshold:.0%} of them"
                + (" and are left out (listed in the store's manifest)" if guard.action == "drop" else "")
            )


def _ensure_tokenizer(corpus: Corpus, settings: TokenizerSettings, folder: Path) -> Tokenizer:
    marker = folder / "megalit.json"
    if marker.exists():
        _same_settings(folder, read_json(marker), asdict(settings))
        return Tokenizer(str(folder))
    _refuse_foreign(folder)
    if settings.name is None:
        console.print(f"training a tokenizer with {settings.vocabulary_size:,} tokens")
        with new_folder(folder) as temporary:
            train_bpe(corpus.texts(TRAIN), settings.vocabulary_size, temporary)
            write_json(temporary / marker.name, asdict(settings))
    else:
        tokenizer = Tokenizer(settings.name)
        with new_folder(folder) as temporary:
            tokenizer.save(temporary)
            write_json(temporary / marker.name, asdict(settings))
    return Tokenizer(str(folder))


def _same_settings(folder: Path, built: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, then, now in differences(built, asked):
        raise UserError(
            f"{folder} was built with {key} {then!r}, and {now!r} is asked for: "
            "choose another folder, or go back to that setting"
        )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists():
        raise UserError(f"{folder} is there and was not made by megalit: choose another folder or move it away")
