"""Recipes ask the right things and put the answers together; they know nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalit.errors import UserError
from megalit.synthesis.items import Generated, Item, Outcome, Recipe, Rejected, Source, TokenCounter
from megalit.synthesis.prompts import Prompt, names
from megalit.synthesis.recipes import CritiqueAndRevise, LatentThoughts, Rephrase, TokenNoise, Unconditional
from megalit.synthesis.recipes.latent_thoughts import split_places
from megalit.synthesis.requests import Completion, Request, request_key, request_seed

TEXT = "First sentence here. Second sentence there!\n\nThird one in a new paragraph. Fourth and last."


def count(text: str) -> int:
    return len(text.split())


def item(text: str = TEXT, index: int = 0) -> Item:
    return Item(Source("id", "hash", text), index)


def drive(
    recipe: Recipe, of: Item, answers: list[list[str]], count_tokens: TokenCounter = count
) -> tuple[list[list[Request]], Outcome]:
    """Run a recipe with prepared answers; give what it asked and what came of it."""
    steps = recipe.run(of, count_tokens)
    asked: list[list[Request]] = []
    try:
        requests = next(steps)
        for texts in answers:
            asked.append(list(requests))
            requests = steps.send([Completion(text, "stop", 1, 1) for text in texts])
    except StopIteration as stop:
        return asked, stop.value
    raise AssertionError("the recipe asks on")


def prompt_of(request: Request) -> str:
    (message,) = request.messages
    return message.content


def test_parts_keep_the_space_between_them() -> None:
    asked, outcome = drive(Rephrase(chunk_tokens=9), item(), [["One.", "Two."]])
    assert [prompt_of(request).split("Text:\n")[1] for request in asked[0]] == [
        "First sentence here. Second sentence there!",
        "Third one in a new paragraph. Fourth and last.",
    ]
    assert outcome == Generated("One.\n\nTwo.")
    asked, outcome = drive(Rephrase(chunk_tokens=None), item(), [["Whole."]])
    assert prompt_of(asked[0][0]).endswith(TEXT)
    assert outcome == Generated("Whole.")


def test_styles_take_turns() -> None:
    recipe = Rephrase(("easy", "hard"))
    prompts = [prompt_of(drive(recipe, item(index=n), [["x"]])[0][0][0]) for n in range(3)]
    assert prompts[0] == prompts[2] != prompts[1]
    assert prompts[0] == Prompt("easy").render(text=TEXT)


def test_a_draft_is_reviewed_and_revised() -> None:
    asked, outcome = drive(CritiqueAndRevise(rounds=2), item(), [["draft"], ["bad"], ["better"], ["fine"], ["best"]])
    assert [requests[0].step for requests in asked] == ["write", "critique 0", "revise 0", "critique 1", "revise 1"]
    assert "draft" in prompt_of(asked[1][0])
    assert all(part in prompt_of(asked[2][0]) for part in (TEXT, "draft", "bad"))
    assert "better" in prompt_of(asked[3][0])
    assert outcome == Generated("best")


@given(st.text(st.sampled_from("ab \n"), max_size=60), st.integers(1, 9))
def test_places_cut_a_text_between_words(text: str, splits: int) -> None:
    places = split_places(text, splits)
    assert places == sorted(set(places))
    assert len(places) <= splits
    for place in places:
        assert text[place - 1].isspace()
        assert not text[place].isspace()
    starts = [at for at in range(1, len(text)) if text[at - 1].isspace() and not text[at].isspace()]
    assert len(places) == splits or len(places) <= len(starts)


def test_places_in_scripts_without_spaces_are_at_letters() -> None:
    assert split_places("天地玄黄宇宙洪荒" * 5, 3) == [10, 20, 30]
    thai = "น้ำ" * 8  # a letter, its tone mark and its vowel
    assert split_places(thai, 3) == [6, 12, 18]
    assert all(place % 3 == 0 for place in split_places(thai[:12], 2) + split_places(thai, 5))
    text = "題 " + "天" * 60
    asked, _ = drive(LatentThoughts(splits=1, prefix_tokens=20, suffix_tokens=10), item(text), [["Because."]], len)
    prefix, suffix = prompt_of(asked[0][0]).split("Beginning:\n")[1].split("\n\nContinuation:\n")
    assert (prefix, suffix) == ("天" * 20, "天" * 10)
    few = "地 " + "天" * 200  # the space is too far back to be the word's beginning
    asked, _ = drive(LatentThoughts(splits=1, prefix_tokens=150, suffix_tokens=10), item(few), [["Because."]], len)
    assert "地" in prompt_of(asked[0][0])


def test_places_are_near_equal() -> None:
    text = "word " * 1000
    places = split_places(text, 4)
    assert places == [1000, 2000, 3000, 4000]


def test_a_thought_stands_between_what_comes_before_and_behind_it() -> None:
    text = " ".join(f"w{n:03}" for n in range(100))
    recipe = LatentThoughts(splits=3, prefix_tokens=10, suffix_tokens=5)
    asked, outcome = drive(recipe, item(text, index=1), [[" Because. "]])
    place = split_places(text, 3)[1]
    assert outcome == Generated("Because.", place)
    prompt = prompt_of(asked[0][0])
    prefix, suffix = prompt.split("Beginning:\n")[1].split("\n\nContinuation:\n")
    assert count(prefix) <= 10
    assert text[:place].endswith(prefix)
    assert count(suffix) <= 5
    assert text[place:].startswith(suffix)
    assert list(recipe.indices(99)) == [0, 1, 2]
    short = drive(recipe, item("two words", index=2), [])[1]
    assert isinstance(short, Rejected)


def test_samples_are_asked_for_with_nothing() -> None:
    asked, outcome = drive(Unconditional(), Item(None, 3), [["text"]])
    assert asked[0][0].messages == ()
    assert outcome == Generated("text")


def test_token_noise_asks_for_nothing() -> None:
    recipe = TokenNoise(deletion=0.5)
    asked, outcome = drive(recipe, item(index=2), [])
    assert not asked
    assert outcome == Generated(recipe.generate("id", TEXT, 2))


def test_a_version_changes_with_everything_that_is_asked(tmp_path: Path) -> None:
    own = tmp_path / "mine.jinja"
    own.write_text("{# version: 7 #}\nSay it again: {{ text }}")
    versions = {
        recipe.version
        for recipe in (
            Rephrase(),
            Rephrase(("easy",)),
            Rephrase(("easy", "hard")),
            Rephrase(chunk_tokens=5),
            Rephrase((str(own),)),
            CritiqueAndRevise(),
            CritiqueAndRevise(rounds=2),
            LatentThoughts(),
            LatentThoughts(splits=8),
            LatentThoughts(prefix_tokens=None),
            TokenNoise(),
            TokenNoise(deletion=0.3),
            Unconditional(),
        )
    }
    assert len(versions) == 13
    assert prompt_of(drive(Rephrase((str(own),)), item("text"), [["x"]])[0][0][0]) == "Say it again: text"
    before = Rephrase((str(own),)).version
    own.write_text("{# version: 7 #}\nSay it once more: {{ text }}")
    assert Rephrase((str(own),)).version != before
    assert TokenNoise(count=9).version == TokenNoise().version


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda folder: Rephrase(("nothing",)), "prompt nothing does not exist"),
        (lambda folder: Rephrase(()), "styles is empty"),
        (lambda folder: Rephrase(chunk_tokens=0), "chunk_tokens is 0"),
        (lambda folder: Rephrase((folder("{{ other }}"),)), "it may use text"),
        (lambda folder: Rephrase((folder("{{ text"),)), "is no Jinja template"),
        (lambda folder: CritiqueAndRevise(rounds=0), "rounds is 0"),
        (lambda folder: LatentThoughts(splits=0), "splits is 0"),
    ],
)
def test_recipes_that_cannot_work_are_refused(recipe, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def folder(text: str) -> str:
        path = tmp_path / "prompt.jinja"
        path.write_text(text)
        return str(path)

    with pytest.raises(UserError, match=message):
        recipe(folder).check()


def test_every_shipped_prompt_has_a_version() -> None:
    assert {"wikipedia", "easy", "hard", "qa", "critique", "revise", "latent_thought"} <= set(names())
    assert all(Prompt(name).version.split()[1] == "1" for name in names())


def test_seeds_and_keys_tell_requests_apart() -> None:
    requests = [Request((), step, chunk) for step in ("a", "b") for chunk in (0, 1)]
    seeds = {request_seed(s, i, a, r) for s in (0, 1) for i in ("x", "y") for a in (0, 1) for r in requests}
    assert len(seeds) == 32
    assert all(0 <= seed < 2**31 for seed in seeds)
    keys = {request_key(r, a, settings) for r in requests for a in (0, 1) for settings in ("s", "t")}
    assert len(keys) == 16
    identities = {
        Item(source, index).identity(recipe, model)
        for source in (None, Source("a", "h", ""), Source("a", "other", ""), Source("b", "h", ""))
        for index in (0, 1)
        for recipe in ("r", "s")
        for model in ("m", "n")
    }
    assert len(identities) == 32
