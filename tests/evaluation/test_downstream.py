"""Benchmarks: what lm-eval's own Hugging Face model says of the exported weights, for one model and for ensembles."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import DataSet
from lm_eval.models.huggingface import HFLM
from test_losses import build
from transformers import AutoModelForCausalLM, AutoTokenizer

from megalit.errors import UserError
from megalit.evaluation.downstream import TASKS, evaluate_tasks, paper_error
from megalit.evaluation.lm_eval_model import MegalitLM
from megalit.modeling import hugging_face
from megalit.modeling.language_model import LanguageModel

# Shorter than some questions, so that their left end is cut off.
LENGTH = 96


def question_files(data_set: DataSet, folder: Path) -> dict[str, dict[str, str]]:
    """Small local files in the formats of the three benchmarks."""
    random = np.random.default_rng(0)
    texts = [row["text"].split() for row in data_set.rows.values()]

    def words(most: int) -> str:
        text = texts[random.integers(len(texts))]
        return " ".join(text[: random.integers(1, most)])

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for number in range(7):
        choices = [words(5) for _ in range(4)]
        rows["arc_easy"].append(
            {
                "question": words(60),
                "choices": {"text": choices, "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[number % 4],
            }
        )
        rows["piqa"].append({"goal": words(20), "sol1": words(15), "sol2": words(15), "label": number % 2})
        distractors = {f"distractor{n + 1}": choices[n] for n in range(3)}
        rows["sciq"].append({"support": words(80), "question": words(9), "correct_answer": choices[3], **distractors})
    split = {"arc_easy": "test", "piqa": "validation", "sciq": "test"}
    files = {}
    for name, own in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        files[name] = {split[name]: str(path)}
    return files


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the data sets of tests out of the user's cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def theirs(model: LanguageModel, data_set: DataSet, folder: Path, **settings: Any) -> Any:
    """lm-eval's own model, made of the exported checkpoint."""
    hugging_face.export(model, folder, torch.float32, LENGTH, 0, 1, data_set.tokenizer.save)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(
        pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=3, max_length=LENGTH, **settings
    )


def requests(data_set: DataSet, folder: Path) -> list[Any]:
    """What the tasks ask: (context, continuation)."""
    rows = [row["text"] for row in data_set.rows.values()]
    pairs = [(rows[n][: 40 * n], " " + rows[n + 1][: 3 * n + 1]) for n in range(12)] + [
        ("", rows[0][:30]),
        ("a b ", "c"),
    ]
    return [SimpleNamespace(args=pair) for pair in pairs]


@pytest.mark.parametrize("bos", [None, True])
def test_each_request_gets_what_lm_evals_own_model_gives(data_set: DataSet, tmp_path: Path, bos: bool | None) -> None:
    model = build()
    ours = MegalitLM([model], data_set.tokenizer, LENGTH, batch=4, bos=bos)
    # The tokenizer that is made here has no template, so lm-eval's switch for BOS has to be given the token itself.
    hf = theirs(model, data_set, tmp_path / "hf")
    if bos:
        plain = hf.tok_encode
        hf.tok_encode = lambda text, add_special_tokens=None, **_: (
            ([data_set.tokenizer.bos] if add_special_tokens is None else []) + plain(text, add_special_tokens=False)
        )
    asked = requests(data_set, tmp_path)
    lengths = [len(ours.tok_encode("".join(request.args))) for request in asked]
    assert max(lengths) > LENGTH + 1 > min(lengths)
    expected = hf.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [SimpleNamespace(args=(row["text"],)) for row in list(data_set.rows.values())[:5]]
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(texts), hf.loglikelihood_rolling(texts, disable_tqdm=True), atol=1e-3
    )


def test_greedy_continuations_are_known(data_set: DataSet) -> None:
    model = build()
    tokens = data_set.tokenizer.encode_batch(["abc def"])[0].tolist()
    best = int(model.eval()(torch.tensor([tokens]))[0, -1].argmax())
    ours = MegalitLM([model], data_set.tokenizer, LENGTH)
    answers = ours._loglikelihood_tokens([(None, tokens, [best]), (None, tokens, [best + 1])])
    assert [greedy for _, greedy in answers] == [True, False]


def test_benchmarks_from_local_files_are_those_of_lm_evals_own_model(data_set: DataSet, tmp_path: Path) -> None:
    model, files = build(), question_files(data_set, tmp_path)
    hf = evaluate_tasks(theirs(model, data_set, tmp_path / "hf"), TASKS, files)
    ours = evaluate_tasks(MegalitLM([model], data_set.tokenizer, LENGTH, batch=5), TASKS, files)
    assert ours.keys() == set(TASKS)
    for name in TASKS:
        assert ours[name].questions == 7
        assert ours[name].metrics == pytest.approx(hf[name].metrics)
    assert paper_error(ours) == pytest.approx(1 - np.mean([result.accuracy for result in hf.values()]))
    assert {result.accuracy for result in ours.values()} != {0.0}


def test_a_task_may_have_another_name_for_tables(data_set: DataSet, tmp_path: Path) -> None:
    import lm_eval.tasks

    files = question_files(data_set, tmp_path)
    (piqa,) = Path(lm_eval.tasks.__file__).parent.rglob("piqa.yaml")
    own = tmp_path / "renamed.yaml"
    own.write_text(json.dumps({"include": str(piqa), "task": "own_piqa", "task_alias": "piqa, renamed"}))
    model = MegalitLM([build()], data_set.tokenizer, LENGTH)
    renamed = evaluate_tasks(model, [str(own)], {str(own): files["piqa"]})[str(own)]
    plain = evaluate_tasks(model, ["piqa"], {"piqa": files["piqa"]})["piqa"]
    assert renamed.questions == 7
    assert renamed.metrics == pytest.approx(plain.metrics)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_answers_with_its_members_average(data_set: DataSet, tmp_path: Path, average: Any) -> None:
    models = [build(seed) for seed in (1, 2, 3)]
    ours = MegalitLM(models, data_set.tokenizer, LENGTH, average=average)
    asked = requests(data_set, tmp_path)[:4]
    for request, (found, _) in zip(asked, ours.loglikelihood(asked, disable_tqdm=True), strict=True):
        if request.args[0] == "":
            continue
        context, continuation = ours._encode_pair(*request.args)
        tokens = torch.tensor([(context + continuation)[-LENGTH - 1 :]])
        with torch.no_grad():
            logits = torch.stack([model(tokens[:, :-1])[0] for model in models])
        mixed = logits.softmax(-1).mean(0).log() if average == "probabilities" else logits.mean(0).log_softmax(-1)
        places = range(len(mixed) - len(continuation), len(mixed))
        expected = sum(float(mixed[place, token]) for place, token in zip(places, continuation, strict=True))
        assert found == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_asked_is_named(data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = question_files(data_set, tmp_path)
    model = MegalitLM([build()], data_set.tokenizer, LENGTH)
    with pytest.raises(UserError, match="no task arc_hard"):
        evaluate_tasks(model, ["arc_hard"])
    with pytest.raises(UserError, match=r"gone.jsonl does not exist"):
        evaluate_tasks(model, ["piqa"], {"piqa": {"validation": "gone.jsonl"}})
    with pytest.raises(UserError, match="no file for validation or test"):
        evaluate_tasks(model, ["piqa"], {"piqa": {"training": files["piqa"]["validation"]}})
    with pytest.raises(UserError, match="which is not among the tasks"):
        evaluate_tasks(model, ["piqa"], {"sciq": files["sciq"]})
    (tmp_path / "torn.jsonl").write_text('{"goal": "a", "sol1"')
    with pytest.raises(UserError, match="the data of task piqa cannot be loaded"):
        evaluate_tasks(model, ["piqa"], {"piqa": {"validation": str(tmp_path / "torn.jsonl")}})
    with pytest.raises(UserError, match="continuation has"):
        model._loglikelihood_tokens([(None, [3], [4] * (LENGTH + 1))])
    with pytest.raises(UserError, match="tokens and the model 290"):
        MegalitLM([build(vocabulary_size=290)], data_set.tokenizer, LENGTH)
    with pytest.raises(UserError, match="generates text"):
        model.generate_until([])


def test_without_lm_eval_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'megalit\[eval\]'"):
        evaluate_tasks(None, TASKS)
