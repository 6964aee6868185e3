"""Shapes are data; those of the papers have the papers' parameter counts."""

import pytest
import torch

from megalit.errors import UserError
from megalit.modeling.language_model import LanguageModel
from megalit.modeling.shapes import SHAPES, Shape, shape_of

# arXiv 2603.18534 and 2509.14786, with Llama 3's vocabulary, embeddings untied.
PUBLISHED = {
    "150m": 154_147_328,
    "300m": 299_649_792,
    "600m": 602_457_088,
    "1.4b": 1_431_373_824,
    "1.5b": 1_540_732_416,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = LanguageModel(name, vocabulary_size=128_256)
        model.configure_model()
    assert model.parameter_counts()[0] == PUBLISHED[name]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((64, 64, 1, 5, 1), "heads do not divide"), ((64, 64, 1, 4, 3), "kv_heads"), ((64, 64, 0, 4, 4), "below 1")],
)
def test_shapes_that_do_not_divide_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shape(*sizes)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="nano"):
        shape_of("huge")
    assert shape_of("nano") is SHAPES["nano"]
