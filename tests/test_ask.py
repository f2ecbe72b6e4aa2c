"""Asking a model in the terminal: answers, passages, commands, pipes; on tiny runs, in this process."""

import json
import os
import pty
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import PASSAGES, QUESTIONS, bert_tokenizer, build_tiny_index, tiny_passage_encoder
from tiny_runs import write_run
from torch.testing import assert_close

from rag.ask.__main__ import CHANGEABLE, OWN, lines_at_hand, main, shown, split_arguments
from rag.ask.session import Choice, Session, Source, describe_decoding, find_indexes, open_session
from rag.checkpoint_config import from_checkpoint
from rag.cli import run_script
from rag.compose import compose_config
from rag.decoding.generation import generate
from rag.decoding.settings import Decoding
from rag.encoders.dpr import PassageEncoder
from rag.errors import UserError
from rag.model import RagModel
from rag.runs import PROJECT
from rag.safe_text import printable

OTHERS = [(title, text.replace("capital", "largest city")) for title, text in PASSAGES[:5]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, passage_encoder: PassageEncoder) -> Path:
    """Run folders of each model, two indexes of their encoder and one of another."""
    root = tmp_path_factory.mktemp("runs")
    index = build_tiny_index(root / "indexes" / "first", passage_encoder)
    build_tiny_index(root / "indexes" / "second", passage_encoder, OTHERS)
    torch.manual_seed(9)
    tokenizer = bert_tokenizer()
    other = PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer)
    build_tiny_index(root / "indexes" / "foreign", other)
    (root / "indexes" / "broken").mkdir()
    (root / "indexes" / "broken" / "manifest.json").write_text("{")
    for model in ("rag_token", "rag_sequence", "closed_book"):
        write_run(root / model, model, index)
    write_run(root / "bm25", "rag_sequence", index, retriever="bm25")
    return root


@cache  # what is asked leaves no trace in a session
def opened(run: Path, *overrides: str) -> tuple[Session, Choice, dict[str, Path]]:
    cfg = compose_config("ask", [f"checkpoint={run}", *overrides])
    return open_session(from_checkpoint(cfg, list(overrides), "rag.ask", CHANGEABLE, OWN))


def direct(model: RagModel, question: str, choice: Choice):
    """The same answer by the functions beneath."""
    with torch.inference_mode():
        return generate(model, model.read(model.prepare([question]), choice.n_docs), choice.decoding)[0][0]


# -- the session -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rag_token", "rag_sequence", "bm25"])
def test_a_reply_is_the_models_answer_with_its_passages(runs, name):
    session, choice, _ = opened(runs / name)
    replies = session.answer(QUESTIONS, choice)
    for question, reply in zip(QUESTIONS, replies, strict=True):
        answer = direct(session.model, question, choice)
        assert (reply.question, reply.answer) == (question, answer.text)
        assert reply.logprob == pytest.approx(answer.logprob, abs=1e-4)
        store = session.model.retriever.index.passages
        ranks = [k for k, row in enumerate(answer.rows) if row >= 0]  # BM25 may find fewer than K
        assert [source.id for source in reply.sources] == [store[int(answer.rows[k])].id for k in ranks]
        assert [source.title for source in reply.sources] == [store[int(answer.rows[k])].title for k in ranks]
        posterior = torch.tensor([source.posterior for source in reply.sources])
        assert_close(posterior, answer.posterior[ranks], atol=1e-4, rtol=1e-3)
        assert sum(source.prior for source in reply.sources) == pytest.approx(1, abs=1e-5)
        if name == "rag_token":
            columns = zip(*(source.by_token or () for source in reply.sources), strict=True)
            assert [sum(column) for column in columns] == pytest.approx([1.0] * len(reply.tokens), abs=1e-4)
        else:
            assert all(source.by_token is None for source in reply.sources)


def test_each_question_has_its_own_choice(runs):
    """K, decoding and index of a question leave no trace on the next."""
    session, choice, indexes = opened(runs / "rag_token")
    first = session.answer(QUESTIONS[:1], choice)[0]
    swapped = session.answer(QUESTIONS[:1], Choice(indexes["second"], 5, Decoding(6, num_beams=2)))[0]
    assert len(swapped.sources) == 5
    texts = {text for _, text in OTHERS}
    assert {source.text for source in swapped.sources} == texts  # 5 of 5
    assert session.answer(QUESTIONS[:1], choice)[0] == first
    assert len(first.sources) == choice.n_docs == 3
    assert all((source.title, source.text) in PASSAGES for source in first.sources)


def test_bm25_searches_the_passages_it_was_swapped_to(runs):
    session, choice, indexes = opened(runs / "bm25")
    question = "largest city of Spain"
    before = session.answer([question], choice)[0]
    after = session.answer([question], Choice(indexes["second"], 3, choice.decoding))[0]
    assert "largest city of Spain" in after.sources[0].text and after.sources[0].title == "Madrid"
    assert all("largest" not in source.text for source in before.sources)


def test_a_choice_that_does_not_work_changes_nothing(runs):
    session, choice, indexes = opened(runs / "rag_token")
    before = session.answer(QUESTIONS[:1], choice)
    for wrong, sentence in [
        (Choice(indexes["second"], 6, choice.decoding), "K = 6 passages"),
        (Choice(runs / "indexes" / "foreign", 2, choice.decoding), "was embedded by"),
        (Choice(runs / "nothing", 2, choice.decoding), "there is no index at"),
    ]:
        with pytest.raises(UserError, match=sentence):
            session.check(wrong)
        assert session.answer(QUESTIONS[:1], choice) == before


def test_the_indexes_that_fit_are_found(runs):
    session, choice, indexes = opened(runs / "rag_token")
    assert indexes == {name: (runs / "indexes" / name).resolve() for name in ("first", "second")}
    assert choice.index == indexes["first"]
    lexical, _, any_index = opened(runs / "bm25")
    assert set(any_index) == {"first", "second", "foreign"}
    inside = find_indexes(opened.__wrapped__(runs / "bm25")[0].model.retriever, [runs / "nothing"])
    assert set(inside) == {"first"}  # nothing within, and its own


def test_the_history_that_fits_stands_before_the_question(runs):
    """128 positions for the generator, 64 for the question encoder with [CLS] and [SEP]."""
    session, choice, _ = opened(runs / "rag_token")
    assert session.in_context([], "who?") == "who?"
    assert session.in_context(["what is the capital of France?", "Paris"], "and of Italy?") == (
        "what is the capital of France?\nParis\nand of Italy?"
    )
    turns = [f"turn{number} " + "river " * 19 for number in range(5)]  # of 20 tokens each
    text = session.in_context(turns, "which river?")  # of 3
    assert text == "\n".join([*turns[3:], "which river?"])  # 2 + 43 of 64, 63 with one more is 65
    assert session.in_context(["river " * 200], "which river?") == "which river?"
    assert session.answer([text], choice)[0].question == text


def test_several_answers_and_sampling_that_can_be_repeated(runs):
    session, choice, _ = opened(runs / "rag_token", "decoding=sample", "decoding.num_return_sequences=4")
    assert choice.decoding == Decoding(100, do_sample=True, top_p=0.9, num_return_sequences=4)
    torch.manual_seed(0)
    first = session.answer(QUESTIONS[:1], choice)[0]
    logprobs = [first.logprob, *(logprob for _, logprob in first.others)]
    assert len(logprobs) == 4 and logprobs == sorted(logprobs, reverse=True)
    torch.manual_seed(0)
    assert session.answer(QUESTIONS[:1], choice)[0] == first
    torch.manual_seed(1)
    assert session.answer(QUESTIONS[:1], choice)[0] != first


def test_more_tokens_than_the_generator_has_positions(runs):
    session, choice, _ = opened(runs / "rag_sequence")
    assert len(session.answer(QUESTIONS[:1], Choice(choice.index, 1, Decoding(128, min_new_tokens=127)))) == 1
    with pytest.raises(UserError, match="max_new_tokens is 129 but the generator has 128 positions"):
        session.answer(QUESTIONS[:1], Choice(choice.index, 1, Decoding(129)))


def test_decodings_in_words():
    assert describe_decoding(Decoding(12)) == "greedy, at most 12 tokens"
    assert describe_decoding(Decoding(50, num_beams=4, thorough=False)) == "4 beams, Fast, at most 50 tokens"
    sampling = Decoding(100, do_sample=True, top_p=0.9, temperature=0.7)
    assert describe_decoding(sampling) == "sampling (temperature 0.7, top_p 0.9, top_k 0), at most 100 tokens"


# -- the command -----------------------------------------------------------------------------------


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: str, piped: str | bytes = "") -> int:
    """python -m rag.ask, with lines on standard input; its exit code."""
    reading, writing = os.pipe()
    os.write(writing, piped.encode() if isinstance(piped, str) else piped)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        try:
            main(arguments)
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def test_json_lines_for_the_questions_of_a_pipe(runs, monkeypatch, capsys):
    checkpoint = f"checkpoint={runs / 'rag_token'}"
    assert ask(monkeypatch, checkpoint, "json=true", piped="\n".join(["", *QUESTIONS])) == 0
    output = capsys.readouterr()
    records = [json.loads(line) for line in output.out.splitlines()]
    session, choice, _ = opened(runs / "rag_token")
    assert [record["question"] for record in records] == QUESTIONS
    for record in records:
        answer = direct(session.model, record["question"], choice)
        assert record["answer"] == answer.text
        assert record["logprob"] == pytest.approx(answer.logprob, abs=1e-3)
        assert len(record["tokens"]) == len(answer.tokens)
        assert list(record["passages"][0]) == ["id", "title", "text", "prior", "posterior", "by_token"]
        by_token = torch.tensor([passage["by_token"] for passage in record["passages"]])
        assert_close(by_token, answer.token_posterior, atol=2e-3, rtol=0)
    assert output.err.splitlines() == [
        f"opening {runs / 'rag_token'}",
        "RAG-Token over first (7 passages), K = 3, greedy, at most 6 tokens",
    ]


def test_text_from_a_pipe_has_each_question_above_its_answer(runs, monkeypatch, capsys):
    assert ask(monkeypatch, f"checkpoint={runs / 'closed_book'}", piped="\n".join(QUESTIONS)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "log p(y|x)" not in line] == QUESTIONS
    assert lines[::2] == QUESTIONS
    assert ask(monkeypatch, f"checkpoint={runs / 'closed_book'}", QUESTIONS[0]) == 0
    assert QUESTIONS[0] not in capsys.readouterr().out  # it stands in the command


def test_a_long_question_is_not_repeated_in_its_error(runs, monkeypatch, capsys):
    question = "what is the capital of France? " * 400
    assert ask(monkeypatch, f"checkpoint={runs / 'closed_book'}", piped=question) == 2
    error = capsys.readouterr().err
    assert "does not fit the generator's context" in error and len(error) < 600
    assert "error: what is the capital of France?" in error


def test_help_breaks_no_name(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    assert ask(monkeypatch, f"checkpoint={runs / 'rag_token'}", piped="/help") == 0
    lines = capsys.readouterr().err.splitlines()
    words = " ".join(lines).replace(",", " ").split()
    assert {"checkpoint", "beam4", "sample", "conversation", "first", "second"} <= set(words)
    listed = lines[2:-1]
    assert len(listed) > 7 and all(len(line) <= 60 for line in listed)


def test_a_wrong_checkpoint_is_told_before_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom rag.ask.__main__ import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stopped: print(stopped.code)\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'datasets') if name in sys.modules])"
    )
    for wrong in (["checkpoint=nothing"], [f"checkpoint={tmp_path}"], ["chekpoint=x"], ["n_docs=3"], []):
        done = subprocess.run(
            [sys.executable, "-c", code, *wrong], capture_output=True, text=True, cwd=PROJECT
        )
        assert done.stdout.splitlines() == ["2", "[]"] and done.stderr.startswith("error: "), done


def test_commands_between_questions(runs, monkeypatch, capsys):
    """Each holds for what comes after it; a wrong one is told and changes nothing."""
    lines = [
        *(QUESTIONS[0], "/docs 2", QUESTIONS[0], "/index second", "/docs 9", "/docs two", "/index third"),
        *("/decoding beam4 max_new_tokens=3", "/decoding beem4", "/dcos 3", QUESTIONS[0]),
        *("/decoding checkpoint", f"/index {runs / 'indexes' / 'first'}", "/quit", "never asked"),
    ]
    checkpoint = f"checkpoint={runs / 'rag_sequence'}"
    assert ask(monkeypatch, checkpoint, "json=true", piped="\n".join(lines)) == 0
    output = capsys.readouterr()
    records = [json.loads(line) for line in output.out.splitlines()]
    assert [len(record["passages"]) for record in records] == [3, 2, 2]
    assert [len(record["tokens"]) <= 3 for record in records][2]
    second = {text for _, text in OTHERS}
    assert all(passage["text"] in second for passage in records[2]["passages"])
    assert output.err.splitlines()[1:] == [
        "RAG-Sequence over first (7 passages), K = 3, greedy, at most 6 tokens",
        "RAG-Sequence over first (7 passages), K = 2, greedy, at most 6 tokens",
        "RAG-Sequence over second (5 passages), K = 2, greedy, at most 6 tokens",
        f"error: K = 9 passages cannot be retrieved from the 5 of {runs / 'indexes' / 'second'}: "
        "give K from 1 to 5",
        "error: /docs two: a whole number of passages is expected, as in /docs 10",
        "error: there is no index third: there is first, second, or give the folder of one",
        "RAG-Sequence over second (5 passages), K = 2, 4 beams, at most 3 tokens",
        "error: decoding=beem4 does not exist: did you mean beam4?",
        "error: /dcos is no command: did you mean /docs?",
        "RAG-Sequence over second (5 passages), K = 2, greedy, at most 6 tokens",
        "RAG-Sequence over first (7 passages), K = 2, greedy, at most 6 tokens",
    ]


def test_a_conversation_keeps_what_was_said(runs, monkeypatch, capsys):
    lines = [QUESTIONS[0], "and of Italy?", "/reset", "and of Italy?"]
    arguments = [f"checkpoint={runs / 'closed_book'}", "json=true", "conversation=true"]
    assert ask(monkeypatch, *arguments, piped="\n".join(lines)) == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert second["context"] == f"{QUESTIONS[0]}\n{first['answer']}\nand of Italy?"
    assert "context" not in first and "context" not in third
    session, choice, _ = opened(runs / "closed_book")
    assert second["answer"] == session.answer([second["context"]], choice)[0].answer
    assert third["answer"] == session.answer(["and of Italy?"], choice)[0].answer


def test_a_question_that_cannot_be_answered_leaves_the_others(runs, monkeypatch, capsys):
    long = "river " * 200
    checkpoint = f"checkpoint={runs / 'rag_sequence'}"
    assert ask(monkeypatch, checkpoint, "json=true", piped=f"{QUESTIONS[0]}\n{long}\n{QUESTIONS[1]}") == 2
    output = capsys.readouterr()
    first, wrong, last = map(json.loads, output.out.splitlines())
    assert (first["question"], last["question"]) == (QUESTIONS[0], QUESTIONS[1])
    assert list(wrong) == ["question", "error"] and "does not fit the generator's context" in wrong["error"]
    assert output.err.splitlines()[-1] == "error: 1 of 3 questions could not be answered: see above"


def test_an_answer_for_people(runs, monkeypatch, capsys):
    """The answer, its log-probability, and every passage with title, text, prior and posterior."""
    assert ask(monkeypatch, f"checkpoint={runs / 'rag_token'}", "n_docs=2", *QUESTIONS[0].split()) == 0
    output = capsys.readouterr().out
    session, choice, _ = opened(runs / "rag_token", "n_docs=2")
    reply = session.answer([QUESTIONS[0]], choice)[0]
    assert f"{reply.answer}   log p(y|x) = {reply.logprob:.3f}" in output
    lines = [line.split() for line in output.splitlines()]
    for rank, source in enumerate(reply.sources, start=1):
        row = [str(rank), *source.title.split(), f"{source.prior:.3f}", f"{source.posterior:.3f}"]
        assert row in lines
    assert " ".join(reply.sources[0].text.split()[:4]) in output

    assert ask(monkeypatch, f"checkpoint={runs / 'closed_book'}", QUESTIONS[0]) == 0
    output = capsys.readouterr()
    assert "log p(y|x)" in output.out and "p(z|x)" not in output.out
    assert "closed book, greedy, at most 6 tokens" in output.err


def test_a_closed_book_model_has_no_passages_to_change(runs, monkeypatch, capsys):
    assert ask(monkeypatch, f"checkpoint={runs / 'closed_book'}", piped="/docs 3\n/index second\n/help") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[2] == "error: /docs changes nothing: a closed-book model reads no passages"
    assert lines[3] == "error: /index changes nothing: a closed-book model reads no passages"
    assert [line.split()[0] for line in lines[4:] if line.startswith("/")] == [
        *("/docs", "/decoding", "/index", "/conversation", "/reset", "/help", "/quit")
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["who?"], "say which model: checkpoint=RUN"),
        (["checkpoint=none", "who?"], "checkpoint=none is not a run folder of train.py"),
        (["checkpoint={run}", "seeed=3"], "the setting seeed does not exist: did you mean seed?"),
        (["checkpoint={run}", "generator=bart_base"], "rag.ask takes corpus, index, decoding, n_docs"),
        (["checkpoint={run}", "n_docs=99"], "K = 99 passages cannot be retrieved"),
        (["checkpoint={run}", "index.path=nowhere"], "there is no index at nowhere"),
        (["checkpoint={run}", "batch_size=0"], "batch_size=0 answers nothing"),
        (["checkpoint={run}", "--json"], "--json is not an override"),
    ],
)
def test_mistakes_are_one_sentence(runs, monkeypatch, capsys, arguments, sentence):
    given = [argument.format(run=runs / "rag_token") for argument in arguments]
    assert ask(monkeypatch, *given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and sentence in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1


def test_bytes_that_are_no_text(runs, monkeypatch, capsys):
    checkpoint = f"checkpoint={runs / 'closed_book'}"
    assert ask(monkeypatch, checkpoint, "json=true", piped=b"who?\n\xff\xfe\n") == 2
    assert "standard input, line 2: not UTF-8" in capsys.readouterr().err


def test_help_is_short_and_has_examples(monkeypatch, capsys):
    for flag in ("-h", "--help"):
        assert ask(monkeypatch, flag) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("python -m rag.ask") and len(lines) < 25


def test_settings_and_the_words_of_a_question():
    assert split_arguments(["n_docs=3", "who", "wrote", "it?", "index.path=a b"]) == (
        ["n_docs=3", "index.path=a b"],
        "who wrote it?",
    )
    assert split_arguments(["+decoding.top_k=3", "~corpus", "--json"]) == (
        ["+decoding.top_k=3", "~corpus", "--json"],
        "",
    )
    assert split_arguments(["what is x = y?"]) == ([], "what is x = y?")
    assert split_arguments(["n_docs=3", "--", "x=3", "what is it?"]) == (["n_docs=3"], "x=3 what is it?")


def test_a_pipe_is_answered_as_it_comes():
    """One line alone is given out at once; those that stand in the pipe already come together."""
    reading, writing = os.pipe()
    lines = lines_at_hand(reading, 3)
    os.write(writing, b"one\n")
    assert next(lines) == ["one"]
    os.write(writing, "zwei\ndrei\nvier\nfünf\nse".encode())
    assert next(lines) == ["zwei", "drei", "vier"]
    assert next(lines) == ["fünf"]
    os.write(writing, b"chs")
    os.close(writing)
    assert list(lines) == [["sechs"]]
    os.close(reading)


def test_a_passage_cannot_command_the_terminal():
    source = Source("1", "A\x1b[2Jtitle", "Some \x1b]0;x\x07text\nof Paris.", 0.5, 0.5, None)
    text = shown(source, "Paris")
    assert text.plain == "A [2Jtitle\nSome  ]0;x text of Paris."
    assert [text.plain[span.start : span.end] for span in text.spans if "yellow" in str(span.style)] == [
        "Paris"
    ]
    assert printable("a\tb") == "a b"
    assert shown(Source(None, "", "", 0.5, 0.5, None), "Paris").plain == "no passage (the null document)"


# -- a terminal ------------------------------------------------------------------------------------


class Terminal:
    """python -m rag.ask in a real terminal."""

    def __init__(self, *arguments: str):
        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rag.ask", *arguments],
            cwd=PROJECT,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: os.login_tty(follower),
        )
        os.close(follower)
        self.seen = ""

    def until(self, text: str, seconds: float = 120) -> str:
        """What is printed up to `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            try:
                self.seen += os.read(self.leader, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"ended without {text!r}: {self.seen}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())


@pytest.mark.slow
def test_in_a_terminal(runs, tmp_path):
    history = tmp_path / "deep" / "history"
    terminal = Terminal(f"checkpoint={runs / 'rag_token'}", f"history={history}")
    terminal.until("> ")
    terminal.type("what is the capital of France?\r")
    assert "p(z|x,y)" in terminal.until("> ")
    terminal.type("/ind\tsec\t\r")  # completed
    assert "RAG-Token over second (5 passages)" in terminal.until("> ")
    terminal.type("\x1b[A\x1b[A\r")  # the line before the last
    answer = terminal.until("> ")
    assert "what is the capital of France?" in answer and "p(z|x,y)" in answer
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
    assert history.read_text().split("\n")[:2] == ["what is the capital of France?", "/index second"]

    terminal = Terminal(f"checkpoint={runs / 'closed_book'}", "history=null")
    terminal.until("> ")
    terminal.type("\x03")
    assert terminal.process.wait(30) == 0


@pytest.mark.slow
def test_a_reader_that_has_had_enough(runs):
    """| head -n 1 ends the command without a word."""
    with subprocess.Popen(
        [sys.executable, "-m", "rag.ask", f"checkpoint={runs / 'closed_book'}", "json=true"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("who?\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["question"] == "who?"
        process.stdout.close()
        process.stdin.write("who?\n" * 10)
        process.stdin.close()
        assert len(process.stderr.read().splitlines()) == 2
        assert process.wait(60) == 0


# -- the shell -------------------------------------------------------------------------------------


def test_shell_completion(monkeypatch, capsys):
    """Hydra's own, for every script that composes its configuration through rag/cli.py."""

    def body(cfg):
        raise AssertionError("a completion runs nothing")

    for typed, completed in {
        "decoding=b": ["decoding=beam4"],
        "retriever=bm": ["retriever=bm25"],
        "trainer.max_s": ["trainer.max_steps="],
    }.items():
        monkeypatch.setenv("COMP_LINE", f"python train.py {typed}")
        run_script("train", "", body, ["-sc", "query=bash"])
        assert capsys.readouterr().out.split() == completed
    run_script("train", "", body, ["-sc", "install=bash"])
    assert "complete -o nospace" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run_script("train", "", body, ["-sc", "install=tcsh"])
    assert "available: install=bash, install=zsh and install=fish" in capsys.readouterr().err


def test_a_checkpoint_in_transformers_format_is_asked_over_an_index(runs, tmp_path, monkeypatch, capsys):
    """As facebook/rag-token-nq: the index is all that has to be said, and /decoding keeps it."""
    session, _, _ = opened(runs / "rag_token")
    session.model.save_pretrained(tmp_path / "whole")
    checkpoint = f"checkpoint={tmp_path / 'whole'}"
    index = f"index.path={runs / 'indexes' / 'first'}"
    lines = [QUESTIONS[0], "/decoding beam4", QUESTIONS[0]]
    assert ask(monkeypatch, checkpoint, index, "json=true", piped="\n".join(lines)) == 0
    said = capsys.readouterr()
    replies = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    assert len(replies) == 2 and len(replies[0]["passages"]) == session.model.n_docs
    assert "4 beams" in said.err and "error" not in said.err
    assert ask(monkeypatch, checkpoint, "who?") == 2
    assert "does not say which passages it reads: give index.path=…" in capsys.readouterr().err
