"""The journal: what is written is there, whatever happens to the process or the file's end."""

import asyncio
from pathlib import Path

import pytest

from megalit.synthesis.journal import Accepted, Completed, Declined, Journal, Place, Record, Settings
from megalit.synthesis.ledger import Ledger


def completed(number: int, text: str = "text") -> Completed:
    return Completed(f"{number:032x}", f"key{number}", text, "stop", 3, 2)


def accepted(number: int, settings: str = "now", tokens: int = 2) -> Accepted:
    return Accepted(f"{number:032x}", "doc", "hash", number, f"text {number}", None, 0, 0, settings, 3, tokens)


def write(folder: Path, records: list[Record]) -> Path:
    """Write a segment of its own; give its path."""
    before = set(folder.glob("*.jsonl"))

    async def run() -> None:
        journal = Journal(folder)
        await asyncio.gather(*(journal.append(record) for record in records))
        await journal.close()

    asyncio.run(run())
    (path,) = set(folder.glob("*.jsonl")) - before
    return path


def read(folder: Path) -> list[Record]:
    return [record for _, record in Journal(folder).new_records()]


RECORDS: list[Record] = [
    Settings("now", {"sampling": {"temperature": 1.0}}),
    completed(1, "two\nlines, „quoted“ and 漢字 and \x00"),
    accepted(1),
    Declined(f"{2:032x}", 2, 0, "too short", False, "now", 3, 2),
]


def test_records_come_back_as_they_were_and_can_be_found_again(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    journal = Journal(tmp_path)
    found = list(journal.new_records())
    assert [record for _, record in found] == RECORDS
    for place, record in reversed(found):
        assert journal.read(place) == record
    assert not list(journal.new_records())
    write(tmp_path, [accepted(7)])
    assert [record for _, record in journal.new_records()] == [accepted(7)]


def test_a_torn_tail_counts_as_not_written(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read(tmp_path) == RECORDS[: sum(end <= length for end in ends)]
    # What a file system may leave of a write that was under way.
    path.write_bytes(whole + b"\0" * 100)
    assert read(tmp_path) == RECORDS
    path.write_bytes(whole + b"\0" * 100 + b"\n")
    assert read(tmp_path) == RECORDS


def test_a_flipped_bit_costs_its_line_alone(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"text 1")
    whole[at] ^= 1
    path.write_bytes(whole)
    assert read(tmp_path) == [record for record in RECORDS if record != accepted(1)]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    journal = Journal(tmp_path)
    assert [record for _, record in journal.new_records()] == RECORDS[:-1]
    path.write_bytes(whole)
    assert [record for _, record in journal.new_records()] == RECORDS[-1:]


def test_many_writers_one_folder(tmp_path: Path) -> None:
    async def run() -> None:
        journals = [Journal(tmp_path) for _ in range(5)]
        await asyncio.gather(*(journals[n % 5].append(accepted(n)) for n in range(200)))
        for journal in journals:
            await journal.close()
            # Its own records are no news to it.
            assert len(list(journal.new_records())) == 160

    asyncio.run(run())
    assert {record.index for record in read(tmp_path) if isinstance(record, Accepted)} == set(range(200))


def test_a_disk_that_fails_is_told_to_everyone_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> list[object]:
        journal = Journal(tmp_path)

        def full(data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal, "_write", full)
        return await asyncio.gather(*(journal.append(accepted(n)) for n in range(5)), return_exceptions=True)

    assert all(isinstance(outcome, OSError) for outcome in asyncio.run(run()))


def test_many_open_segments(tmp_path: Path) -> None:
    for number in range(70):
        write(tmp_path, [accepted(number)])
    journal = Journal(tmp_path)
    places = [place for place, _ in journal.new_records()]
    assert [journal.read(place).index for place in [*places, *places]] == [*range(70), *range(70)]  # type: ignore[union-attr]
    assert isinstance(places[0], Place)


def test_the_ledger_takes_records_in_any_order() -> None:
    records: list[Record] = [
        completed(1),
        accepted(1),
        completed(2, "kept"),
        Declined(f"{2:032x}", 2, 0, "short", False, "now", 1, 1),
        Declined(f"{3:032x}", 3, 1, "short", False, "now", 1, 1),
        Declined(f"{4:032x}", 4, 0, "short", True, "now", 1, 1),
        Declined(f"{5:032x}", 5, 1, "short", False, "then", 1, 1),
    ]
    places = [(Place("segment", number), record) for number, record in enumerate(records)]
    for order in (places, places[::-1], [*places, *places]):
        ledger = Ledger(attempts=2, settings="now")
        ledger.add(order)
        done = [number for number in range(1, 6) if ledger.is_done(f"{number:032x}")]
        assert done == [1, 3, 4]
        assert ledger.next_attempt(f"{2:032x}") == 1
        assert ledger.completions(f"{2:032x}") == {"key2": Place("segment", 2)}
        assert not ledger.completions(f"{1:032x}") or order is not places
        # An attempt that was declined under other settings is worth another try.
        assert ledger.next_attempt(f"{5:032x}") == 0


def test_redo_knows_only_what_was_made_with_the_settings_of_now() -> None:
    for redo, made in ((False, [1, 2]), (True, [2])):
        ledger = Ledger(3, "now", redo)
        ledger.add([(Place("segment", 0), accepted(1, "then")), (Place("segment", 1), accepted(2, "now"))])
        assert [number for number in (1, 2) if ledger.is_done(f"{number:032x}")] == made


def test_what_others_make_is_not_remembered() -> None:
    records: list[Record] = [accepted(1), accepted(2), Declined(f"{3:032x}", 3, 1, "short", False, "now", 1, 1)]
    records += [completed(4), completed(5)]
    ledger = Ledger(1, "now", only={bytes.fromhex(f"{number:032x}") for number in (2, 5)})
    ledger.add((Place("segment", number), record) for number, record in enumerate(records))
    assert [number for number in range(6) if ledger.is_done(f"{number:032x}")] == [2]
    assert [number for number in range(6) if ledger.completions(f"{number:032x}")] == [5]


def test_tokens_of_a_sample_count_once() -> None:
    def sample(number: int, tokens: int) -> Accepted:
        return Accepted(f"{number:032x}", None, None, number, "t", None, 0, 0, "now", 1, tokens)

    ledger = Ledger(1, "now")
    ledger.accept(sample(0, 5))
    ledger.accept(sample(2, 0))
    ledger.decline(Declined(f"{1:032x}", 1, 0, "short", False, "now", 1, 1))
    assert ledger.sample_tokens == {0: 5, 1: 0, 2: 1}
    ledger.accept(sample(1, 10))  # by a process that was allowed more attempts
    ledger.accept(sample(1, 12))
    assert ledger.sample_tokens == {0: 5, 1: 10, 2: 1}
