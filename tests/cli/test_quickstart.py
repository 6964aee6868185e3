"""The quickstart itself, with a smaller budget: no network and no file."""

from pathlib import Path

from running import Run

from megalit.corpus.tables import TRAIN, VALIDATION, Corpus
from megalit.scaling.records import read_record
from megalit.streams.store_set import open_stores

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_quickstart_from_nothing_to_a_result(run: Run, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    budget = ("--data.total_tokens", "60000", "--model.shape", "nano", "--trainer.accelerator", "cpu")
    assert run("fit", "--config", QUICKSTART, *budget) == 0
    record = read_record(tmp_path / "runs" / "quickstart")
    assert record.status == "finished"
    assert record.losses["iid"]["nats_per_token"] < record.training_curve[0].losses["train"]

    corpus = Corpus(tmp_path / "data" / "quickstart" / "corpus")
    characters = corpus.manifest["characters"]
    assert sum(characters.values()) > 2_000_000
    documents = corpus.manifest["documents"]
    assert 0.03 < documents[VALIDATION] / sum(documents.values()) < 0.07
    assert len(set(corpus.texts(TRAIN)) | set(corpus.texts(VALIDATION))) == sum(documents.values())
    stores = open_stores(tmp_path / "data" / "quickstart" / "stores")
    assert [store.manifest.items for store in stores.generations] == [4 * documents[TRAIN]]

    capsys.readouterr()
    assert run("fit", "--config", QUICKSTART, *budget) == 0
    assert "is finished" in capsys.readouterr().err
