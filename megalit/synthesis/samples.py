"""Which samples a shard makes, where they are to have so many tokens and nobody knows how long each will get."""

from collections.abc import Iterator
from math import ceil

from megalit.synthesis.items import Item
from megalit.synthesis.journal import Ended
from megalit.synthesis.ledger import Ledger
from megalit.synthesis.work import Shard, Work


def samples_to_begin(work: Work, ledger: Ledger, shard: Shard, of_all: bool = False) -> Iterator[Item]:
    """Samples that can be begun together: of those that will be needed, by what is known now.

    The table will hold the first samples that have ``work.total_tokens``. Every shard makes its part of them, whether
    others have begun theirs or not, so what is missing counts as much as a sample has on average; before there are any,
    as much as one can have. When these are made, more is known, and this is asked again.

    Args:
        of_all: those of all shards, instead of this one's.
    """
    assert work.total_tokens is not None
    # Of a shard that is at work, the short ones are finished first: its average would be too low.
    over = {number for number in range(shard.of) if ended(work, Shard(number, shard.of)) in ledger.ended}
    known = [tokens for index, tokens in ledger.sample_tokens.items() if index % shard.of in {shard.number, *over}]
    average = sum(known) / len(known) if any(known) else work.sampling.max_tokens
    # An average of few is a guess: no more are begun on it than it is of.
    room = max(len(known), ceil(work.total_tokens / work.sampling.max_tokens / shard.of))
    index, tokens = 0, 0.0
    # Where nothing is known, one of this shard's own will tell.
    while room and (tokens < work.total_tokens or (not known and index <= shard.number)):
        made = ledger.sample_tokens.get(index)
        if made is None and (of_all or index % shard.of == shard.number):
            room -= 1
            yield Item(None, index)
        tokens += average if made is None else made
        index += 1


def ended(work: Work, shard: Shard) -> Ended:
    """What a shard's journal says when its part is made."""
    assert work.total_tokens is not None
    return Ended(str(shard), work.total_tokens, work.fingerprint)


def all_ended(work: Work, ledger: Ledger, shards: int) -> bool:
    """Whether each shard of a division has made its part."""
    return all(ended(work, Shard(number, shards)) in ledger.ended for number in range(shards))
