"""What every reader yields: a document with what belongs to it."""

from dataclasses import dataclass

from megalit.files import digest


@dataclass(frozen=True)
class Generation:
    """One synthetic version of a document.

    Attributes:
        style: the recipe or style that made it, for example ``wikipedia``.
        text: the generated text.
    """

    style: str
    text: str


@dataclass(frozen=True)
class Thought:
    """A rationale that belongs before the character ``offset`` of its document's text."""

    offset: int
    text: str


@dataclass(frozen=True)
class Document:
    """A real document and the synthetic data that came with it in the input.

    Attributes:
        id: unique in the corpus; the validation split and every join go by it.
        text: the document's text.
        source: name of the input it was read from.
        place: where it stands in the input, for error messages.
    """

    id: str
    text: str
    source: str
    place: str
    generations: tuple[Generation, ...] = ()
    thoughts: tuple[Thought, ...] = ()

    @property
    def content_hash(self) -> str:
        """Hash of the text: two documents with the same one are exact duplicates."""
        return digest(self.text.encode())
