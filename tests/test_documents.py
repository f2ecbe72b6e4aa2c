"""A folder of documents: how files are cut, when the index beside it is used, made and taken over, and what answers."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_passage_encoder
from reader_folders import NOTES, tiny_reader, write_notes
from sentence_folders import tiny_transformer, write_modules

from rag.ask import open_documents
from rag.ask.__main__ import main
from rag.ask.command import with_folder_quoted
from rag.ask.conversation import Conversation
from rag.ask.documents import session_of
from rag.ask.doubt import NOT_HERE
from rag.ask.highlight import answer_sentence
from rag.ask.page import Page
from rag.compose import CONFIGS, compose_config
from rag.decoding.answers import Answer
from rag.encoders.opening import open_passage_encoder
from rag.encoders.protocol import describe_encoder
from rag.errors import UserError
from rag.evaluation.calibration import Calibration, Point, identity_of
from rag.evaluation.evidence import Evidence, empty_logprobs, gather
from rag.evaluation.question_words import WordKnowledge
from rag.index.documents import cache_of, index_documents, read_documents
from rag.index.folder import Index
from rag.index.passage import Passage
from rag.index.reading import CorpusReading
from rag.index.sections import name_of, read_sections
from rag.index.splitting import packed, sentences

# -- how files are cut -----------------------------------------------------------------------------


def cut(tmp_path: Path, text: str, name: str = "a_file.md", size: int | None = None) -> list[tuple[str, str]]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return list(read_sections(tmp_path / name, CorpusReading(split="headings", size=size)))


def test_a_passage_is_titled_by_the_headings_above_it(tmp_path):
    text = "before\n\n# Algeria\nIt is large.\n\n## Government\nThe *capital* is\n**Algiers**."
    text += "\n### Law\nCivil law.\n## Land\nSand."
    assert cut(tmp_path, text) == [
        ("Algeria", "before"),
        ("Algeria", "It is large."),
        ("Algeria – Government", "The capital is Algiers."),
        ("Algeria – Government – Law", "Civil law."),
        ("Algeria – Land", "Sand."),
    ]


def test_the_title_is_front_matter_or_the_heading_above_all_or_the_files_name(tmp_path):
    assert cut(tmp_path, "---\ntitle: 'Notes'\nx: 1\n---\n# One\nText.")[0] == ("Notes – One", "Text.")
    assert cut(tmp_path, "## One\na\n## Two\nb") == [("a file – One", "a"), ("a file – Two", "b")]
    assert cut(tmp_path, "Only text.", "south-africa_2021.txt") == [("south africa 2021", "Only text.")]
    assert name_of(Path("x/Chad.md.gz")) == "Chad" and name_of(Path("__.md")) == "__"


def test_underlined_headings_fences_tables_lists_and_quotes(tmp_path):
    text = (
        'Notes\n=====\nOne.\n\nPart\n----\n> quoted\n\n- first [link](http://a.b "t")\n- second\n\n'
        "| a | b |\n|---|:--|\n| 1 | 2 |\n\n```sh\n# no heading\n```\n<!-- hidden\n# too -->\n***\n"
        "- one - two > three\n\nEnd <b>here</b> `code`."
    )
    assert cut(tmp_path, text) == [
        ("Notes", "One."),
        (
            "Notes – Part",
            "quoted\nfirst link\nsecond\na | b\n1 | 2\n# no heading\none - two > three\nEnd here code.",
        ),
    ]


def test_marks_inside_words_stay(tmp_path):
    ((_, text),) = cut(tmp_path, "snake_case_name, 2*3*4, a * b * c, f(x)_y and \\*stars\\*")
    assert text == "snake_case_name, 2*3*4, a * b * c, f(x)_y and *stars*"


def test_sentences_end_where_a_reader_says_so():
    text = "It is J. Smith's. Mr. Brown came on 3.5. by 4 p.m. The U.S. Army won! Was it so? “Yes.” 48 provinces.\nnext"
    assert sentences(text) == [
        "It is J. Smith's.",
        "Mr. Brown came on 3.5. by 4 p.m.",
        "The U.S. Army won!",
        "Was it so?",
        "“Yes.”",
        "48 provinces.",
        "next",
    ]
    assert sentences("東京は首都である。人口は多い。") == ["東京は首都である。", "人口は多い。"]


def test_passages_end_with_paragraphs_or_sentences():
    assert list(packed(["a b", "c d", "e f g"], 4)) == ["a b\nc d", "e f g"]
    assert list(packed(["A b.", "One two. Three four. Five six."], 4)) == [
        "A b.",
        "One two. Three four.",
        "Five six.",
    ]
    assert list(packed(["a b c d e f g"], 3)) == ["a b c", "d e f", "g"]
    assert list(packed(["x", "Long one here now. B."], 4)) == ["x", "Long one here now.", "B."]
    assert all(len(piece) <= 6 for piece in packed(["東京は首都である人口は多い"], 3))


def test_words_that_pdf_broke_are_joined_in_text_files_alone(tmp_path):
    assert cut(tmp_path, "the guaran-\ntee of ﬁre\n\nX-\nRay", "a.txt") == [
        ("a", "the guarantee of fire\nX- Ray")
    ]
    assert cut(tmp_path, "guaran-\ntee", "a.md") == [("a", "guaran- tee")]


def test_nothing_of_a_document_is_lost(tmp_path):
    """Every word once and in order, whatever the size of a passage."""
    words = [f"w{n}{'.' if n % 7 == 6 else ''}" for n in range(500)]
    text = "# T\n\n" + "\n\n".join(" ".join(words[i : i + 90]) for i in range(0, 500, 90))
    for size in (5, 20, 100):
        found = cut(tmp_path, text, size=size)
        assert " ".join(piece for _, piece in found).split() == words
        assert max(len(piece.split()) for _, piece in found) <= size


def test_a_folder_is_read_with_names_as_ids(tmp_path, caplog):
    notes = write_notes(tmp_path / "notes")
    (notes / "picture.png").write_bytes(b"x")
    (notes / ".hidden.md").write_text("no")
    assert [passage.id for passage in read_documents(notes)] == [
        "animals/otter.txt#1",
        "lighthouse.md#1",
        "lighthouse.md#2",
        "maria-kestrel.md#1",
        "maria-kestrel.md#2",
    ]
    assert "2 files left out: 1 hidden (.hidden.md), 1 .png (picture.png)" in caplog.text
    assert next(read_documents(notes / "lighthouse.md")).id == "lighthouse.md#1"


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"a.md": "# only a heading\n", "b.txt": "\n"}, "holds no text: all of its 2 files are empty"),
        ({"a.png": "x"}, "has nothing to read: found 1 .png"),
        ({}, "does not exist: give documents=FOLDER"),
    ],
)
def test_folders_without_text(tmp_path, notes, said):
    with pytest.raises(UserError, match=said):
        list(read_documents(write_notes(tmp_path / "notes", notes)))


# -- the index beside it -----------------------------------------------------------------------------


class Encoder:
    """A real encoder that counts what it embeds, and may be killed."""

    def __init__(self, folder: Path, dies_after: int = 10**9):
        self.inner = open_passage_encoder(folder).eval()
        self.info = describe_encoder("tiny", self.inner)
        self.seen: list[str] = []
        self.dies_after = dies_after

    def encode(self, passages: list[Passage]) -> np.ndarray:
        if len(self.seen) >= self.dies_after:
            raise KeyboardInterrupt
        self.seen += [passage.id for passage in passages]
        return self.inner.encode(passages)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return write_modules(tiny_transformer(tmp_path_factory.mktemp("documents") / "encoder"), max_length=40)


@pytest.fixture
def encoder(encoder_folder) -> Encoder:
    return Encoder(encoder_folder)


def made(notes: Path, encoder: Encoder, **settings) -> tuple[Index, int]:
    encoder.seen.clear()
    return index_documents(notes, encoder.encode, encoder.info, show_progress=False, **settings)


def check_vectors(index: Index, encoder: Encoder) -> None:
    passages = list(index.passages)
    np.testing.assert_allclose(
        index.vectors(np.arange(len(index))), encoder.inner.encode(passages), rtol=1e-5, atol=1e-6
    )


def test_an_unchanged_folder_is_not_read_again(tmp_path, encoder):
    notes = write_notes(tmp_path / "notes")
    index, embedded = made(notes, encoder)
    assert embedded == len(encoder.seen) == len(index) == 5
    assert index.folder == cache_of(notes) == tmp_path / ".notes.rag" / "index"
    check_vectors(index, encoder)
    for file in notes.rglob("*.*"):
        os.utime(file, (1, 1))  # another time, the same content
    again, embedded = made(notes, encoder)
    assert (embedded, encoder.seen) == (0, []) and again.passages.sha256 == index.passages.sha256
    moved = notes.rename(tmp_path / "moved")
    (tmp_path / ".notes.rag").rename(tmp_path / ".moved.rag")
    assert made(moved, encoder)[1] == 0


def test_what_changed_is_embedded_and_what_stays_is_taken_over(tmp_path, encoder):
    notes = write_notes(tmp_path / "notes")
    made(notes, encoder)
    text = NOTES["lighthouse.md"].replace("1834", "1835")
    (notes / "lighthouse.md").write_text(text)
    (notes / "new.md").write_text("# New\n\nOne more.")
    (notes / "animals" / "otter.txt").unlink()
    index, embedded = made(notes, encoder)
    assert embedded == 2 and sorted(encoder.seen) == ["lighthouse.md#2", "new.md#1"]
    assert index.passages.ids(range(5)) == [  # what stays, then what was read again
        *("maria-kestrel.md#1", "maria-kestrel.md#2", "lighthouse.md#1", "lighthouse.md#2", "new.md#1")
    ]
    assert index.passages[3].text.startswith("The lighthouse was built in 1835")
    check_vectors(index, encoder)
    (notes / "new.md").rename(notes / "renamed.md")  # the same words under another name
    index, embedded = made(notes, encoder)
    assert embedded == 0 and index.passages.ids([4]) == ["renamed.md#1"]


def test_a_killed_build_goes_on_and_is_never_opened(tmp_path, encoder_folder, encoder, monkeypatch):
    notes = write_notes(tmp_path / "notes")
    monkeypatch.setattr("rag.index.documents._SHARD", 2)
    dying = Encoder(encoder_folder, dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        made(notes, dying, batch_size=2)
    assert len(dying.seen) == 2 and not cache_of(notes).exists()
    index, embedded = made(notes, encoder, batch_size=2)
    assert len(encoder.seen) == 3 and embedded == 5 and len(index) == 5
    check_vectors(index, encoder)
    (notes / "maria-kestrel.md").write_text("# Other\n\nOther words.")
    dying = Encoder(encoder_folder, dies_after=0)
    with pytest.raises(KeyboardInterrupt):
        made(notes, dying)
    assert Index.open(cache_of(notes)).passages.sha256 == index.passages.sha256  # the old one, whole
    (notes / "maria-kestrel.md").write_text(NOTES["maria-kestrel.md"])
    assert made(notes, encoder)[1] == 0  # what was begun for other words is not looked at


def test_a_damaged_index_or_one_of_another_encoder_is_made_anew(tmp_path, encoder):
    notes = write_notes(tmp_path / "notes")
    index, _ = made(notes, encoder)
    with open(index.folder / "passages" / "passages.arrow", "ab") as file:
        file.write(b"x")
    assert made(notes, encoder)[1] == 5
    other = Encoder(write_modules(tiny_transformer(tmp_path / "other", initializer_range=0.2), max_length=40))
    index, embedded = made(notes, other)
    assert embedded == 5 and index.manifest.encoder.weights == other.info.weights
    assert made(notes, other, reading=CorpusReading(split="headings", size=3))[1] > 5  # cut otherwise


def test_a_place_that_cannot_be_written_is_told(tmp_path, encoder):
    notes = write_notes(tmp_path / "notes")
    (tmp_path / ".notes.rag").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        made(notes, encoder)
    assert made(notes, encoder, folder=tmp_path / "elsewhere")[1] == 5


# -- what answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    return tiny_reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def settings(tmp_path, encoder_folder, reader) -> list[str]:
    notes = write_notes(tmp_path / "my notes, 2021")
    return [
        f"documents={notes}",  # as a shell gives documents="my notes, 2021"
        f"checkpoint={reader}",
        f"passage_encoder={encoder_folder}",
        f"paths.outputs={tmp_path}",
        "n_docs=2",
        "retriever.weight=10",
    ]


def test_a_folder_answers_from_python(tmp_path, encoder_folder, reader, capsys):
    notes = write_notes(tmp_path / "it's [my], {notes}=1")
    given = (f"passage_encoder={encoder_folder}", "n_docs=2", "retriever.weight=10")
    documents = open_documents(notes, reader, *given)
    said = capsys.readouterr().err
    assert said.startswith(f"reading {notes}; its index is kept in {cache_of(notes)}\n")
    assert "5 passages, 5 of them embedded now" in said
    reply = documents("who was the engineer of the lighthouse built in 1834")
    assert (
        reply.sources[0].file == "lighthouse.md"
        and reply.sources[0].title == "The lighthouse of Varne – Building"
    )
    assert reply.answer and reply.known in (True, False) and len(reply.sources) == 2
    assert reply.source is not None and reply.source.posterior == max(s.posterior for s in reply.sources)
    assert documents.answer(["which animal eats fish"])[0].sources[0].file == "animals/otter.txt"
    again = open_documents(notes, reader, *given)
    assert "5 passages, unchanged since the last time" in capsys.readouterr().err
    assert again("who was the engineer of the lighthouse built in 1834") == reply


@pytest.mark.parametrize("processor", [True, False, None])  # None: torch does not know
def test_documents_are_embedded_in_bfloat16_where_that_is_faster(settings, monkeypatch, capsys, processor):
    """An index that is there stays of its precision, whatever the processor; another one is made where it is asked."""
    notes = Path(settings[0].removeprefix("documents="))

    def opened(*more: str) -> tuple[str | None, str]:
        monkeypatch.setattr("rag.ask.documents.cpu_has_bfloat16", lambda: processor)
        session, choice, _ = session_of(compose_config("documents", with_folder_quoted([*settings, *more])))
        (how,) = re.findall(r"passages, (.*)", capsys.readouterr().err)
        return session.model.retriever.index.manifest.encoder.precision, how

    first = "bfloat16" if processor else None
    assert opened() == (first, "5 of them embedded now")
    processor = not processor
    assert opened() == (first, "unchanged since the last time")
    (notes / "new.md").write_text("# New\n\nOne more.")
    assert opened() == (first, "1 of them embedded now")
    other, asked = (None, "bfloat16=false") if first else ("bfloat16", "bfloat16=true")
    assert opened(asked) == (other, "6 of them embedded now")
    assert opened() == (other, "unchanged since the last time")


def test_a_folder_answers_on_the_command_line(settings, tmp_path, monkeypatch, capsys):
    main([*settings, "who described forty mosses"])
    shown = capsys.readouterr()
    assert (
        shown.err.splitlines()[0].startswith("reading ")
        and str(tmp_path / ".my notes, 2021.rag") in shown.err
    )
    assert "maria-kestrel.md, maria kestrel – Work" in " ".join(shown.out.split())
    main([*settings, "json=true", "who described forty mosses"])
    record = json.loads(capsys.readouterr().out)
    assert record["known"] in (True, False) and record["passages"][0]["id"] == "maria-kestrel.md#2"
    assert 0 <= record["prior_share"] <= 1
    assert record["answerability"] is None  # of a reader that the project's calibration is not for
    assert record["file"] in ("maria-kestrel.md", "lighthouse.md", "animals/otter.txt")
    assert record["answer"].casefold() in record["sentence"].casefold()
    assert (
        "Zanzibarites"
        in shown_of([*settings, "who described the Zanzibarites"], capsys).split(
            "in no passage or vocabulary"
        )[1]
    )


def shown_of(arguments: list[str], capsys) -> str:
    main(arguments)
    return capsys.readouterr().out


def test_a_calibration_decides_what_is_believed(settings, tmp_path, capsys, monkeypatch):
    """From the terminal and on the page: a threshold above every score withholds, one below believes."""
    session, choice, _ = session_of(compose_config("documents", with_folder_quoted(settings)))
    fitted = replace(
        Calibration.margin(), fitted_for=identity_of(session.model), n_docs=2, curve=(Point(2.0, 0, 1, 1),)
    )
    file = tmp_path / "calibration.json"
    given = [*settings, f"answerability={file}", "abstain=true"]
    question = "who described forty mosses"
    replace(fitted, threshold=-1.0).save(file)
    shown = shown_of([*given, question], capsys)
    assert not shown.startswith("Not in") and "answerability " in shown and "(believed from -1.00)" in shown
    replace(fitted, threshold=2.0).save(file)
    shown = shown_of([*given, question], capsys)
    assert shown.startswith("Not in these documents. The nearest passages:") and "log p(y|x)" not in shown
    assert "maria-kestrel.md, maria kestrel – Work" in " ".join(shown.split())
    record = json.loads(shown_of([*given, "json=true", question], capsys))
    assert record["answer"] == NOT_HERE and record["abstained"] is True and record["guess"]
    assert record["known"] is False and record["threshold"] == 2 and len(record["passages"]) == 2
    shown = shown_of([*given[:-1], question], capsys)
    assert shown.startswith("I do not know: nothing that I read answers this.") and "best guess: " in shown
    session, choice, indexes = session_of(compose_config("documents", with_folder_quoted(given)))
    page = Page(session, choice, indexes, lambda name: choice.decoding, None, [])
    answer, _, _, cards = page.ask(question, "my notes, 2021", 2, "as trained")
    assert "Not in these documents." in answer and "log p" not in answer and "believed from 2.00" in answer
    assert "maria-kestrel.md" in cards and "<mark>" not in cards
    # a conversation shows that nothing was answered, and does not ask the next question in the light of it
    _, turns, chat, _ = page.say(question, Conversation(), "my notes, 2021", 2, "as trained")
    assert turns.shown == (question, NOT_HERE) and NOT_HERE in chat
    _, turns, _, _ = page.say("and who ferns", turns, "my notes, 2021", 2, "as trained")
    assert turns.context == (question, "and who ferns")
    asked = ["conversation=true", "json=true"]
    (tmp_path / "asked.txt").write_text(f"{question}\nand who ferns")
    with open(tmp_path / "asked.txt") as file:
        monkeypatch.setattr("sys.stdin", file)
        second = json.loads(shown_of([*given, *asked], capsys).splitlines()[1])
    assert second["context"] == f"{question}\nand who ferns" and second["abstained"] is True


def test_no_calibration_for_another_reader(settings, tmp_path, capsys):
    def told(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*settings, *more, "who"])
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "abstain=true needs a calibration, and the project's is for its own reader" in told("abstain=true")
    assert "precision=… needs a calibration" in told("precision=0.9")
    assert "precision=9 is no share" in told("precision=9") and "precision=x is no" in told("precision=x")
    assert "answerability=no.json does not exist" in told("answerability=no.json")
    (tmp_path / "bad.json").write_text('{"format": 1, "features": ["margin"]}')
    assert "bad.json is damaged" in told(f"answerability={tmp_path / 'bad.json'}")
    project = CONFIGS / "answerability.json"
    assert "was fitted for another model (" in told(f"answerability={project}", "abstain=true")


def test_a_folder_answers_on_the_page(settings):
    cfg = compose_config("documents", with_folder_quoted(settings))
    session, choice, indexes = session_of(cfg)
    assert list(indexes) == ["my notes, 2021"]
    page = Page(session, choice, indexes, lambda name: choice.decoding, None, [])
    answer, beside, _, cards = page.ask("who described forty mosses", "my notes, 2021", 2, "as trained")
    assert beside == "" and "maria-kestrel.md" in cards
    assert "I do not know" in answer or "<strong>" in answer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["documents=nowhere"], "nowhere does not exist: give documents=FOLDER"),
        (["checkpoint=nothing-here/at-all"], "nothing-here/at-all"),
        (["batch_size=0"], "batch_size=0 answers nothing"),
        (["n_dosc=3"], "n_docs"),
    ],
)
def test_mistakes_are_one_sentence(settings, change, said, capsys):
    kept = [each for each in settings if each.split("=")[0] != change[0].split("=")[0]]
    with pytest.raises(SystemExit) as ended:
        main([*kept, *change, "who"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_fewer_passages_than_are_read(tmp_path, encoder_folder, reader):
    notes = write_notes(tmp_path / "notes", {"one.md": "The lighthouse was built by the engineer."})
    documents = open_documents(notes, reader, f"passage_encoder={encoder_folder}")
    assert len(documents("who built the lighthouse").sources) == 1


# -- whether to believe it -----------------------------------------------------------------------------


def an_answer(tokens: tuple[int, ...], posterior: list[float], scores: list[float]) -> Answer:
    both = torch.tensor(posterior), torch.tensor(scores)
    return Answer("x", tokens, -1.0, both[0].log(), both[1], both[0], None, np.arange(len(scores)))


def evidence_of(documents, answer: Answer, question: str) -> Evidence:
    """Of an answer in place of the model's own."""
    model = documents.session.model
    with torch.inference_mode():
        contexts = model.read(model.prepare([question]), 2)
        return gather(model, WordKnowledge(model), [question], contexts, [answer])[0]


def test_the_evidence_by_hand(settings, reader, encoder_folder, tmp_path):
    notes = write_notes(tmp_path / "notes")
    documents = open_documents(notes, reader, f"passage_encoder={encoder_folder}", "n_docs=2")
    model = documents.session.model
    question = "Who was the engineer of the lighthouse in Narnia?"
    with torch.inference_mode():
        contexts = model.read(model.prepare([question]), 2)
        empty = empty_logprobs(model, contexts)[0]
    answer = an_answer((5, 3), [0.25, 0.75], [-0.1, -2.0])
    rows = np.array([model.retriever.index.passages.row_of("lighthouse.md#2"), 0])[::-1].copy()
    answer = replace(answer, rows=rows, doc_logprobs=torch.tensor([0.6, 0.4]).log())
    found = evidence_of(documents, answer, question)
    assert found.log_probability == -1.0 and found.margin == pytest.approx(-2.0 - float(empty[1]))
    assert found.entropy == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2))
    assert found.prior_share == pytest.approx(0.25 + 0.4)
    assert contexts.retrieved is not None
    assert found.retrieval == pytest.approx(float(contexts.retrieved.scores[0, 1]))
    # of five passages one holds "engineer", two "lighthouse" and none "Narnia"; "who", "was" and "in" say nothing
    idf = {n: np.log(1 + (5 - n + 0.5) / (n + 0.5)) for n in (0, 1, 2, 3)}
    known = WordKnowledge(model).of_question(question)
    assert set(known.weights) == {"engineer", "lighthouse", "narnia"}
    assert known.weights["narnia"] == pytest.approx(idf[0])
    tokenizers = model.generator.tokenizer, model.retriever.question_encoder.tokenizer
    words = ("engineer", "lighthouse", "Narnia")
    without = [word for word in words if any("[UNK]" in each.tokenize(word) for each in tokenizers)]
    assert known.unknown == tuple(without) and "Narnia" in without  # this encoder knows few words
    assert known.weights["engineer"] == pytest.approx(idf[1])
    assert known.weights["lighthouse"] == pytest.approx(idf[2])
    assert found.overlap == pytest.approx((idf[1] + idf[2]) / (idf[0] + idf[1] + idf[2]))
    assert found.unknown_words == known.unknown and found.answered
    nothing = evidence_of(documents, an_answer((), [0.5, 0.5], [-1.0, -1.0]), question)
    assert not nothing.answered and not Calibration.margin(-1e9).believes(nothing)


def test_the_margin_is_the_rule_without_a_calibration():
    def believes(margin: float, least: float = 0.0) -> bool:
        return Calibration.margin(least).believes(Evidence(-1.0, margin, 0.0, 0.0, 0.0, 0.0))

    assert believes(0.5) and believes(0.0) and not believes(-0.1)
    assert not believes(0.5, 0.6) and believes(0.7, 0.6)


def test_the_empty_answers_probability_is_the_readers_own(settings, reader, encoder_folder, tmp_path):
    notes = write_notes(tmp_path / "notes")
    documents = open_documents(notes, reader, f"passage_encoder={encoder_folder}", "n_docs=3")
    model = documents.session.model
    with torch.inference_mode():
        batch = model.prepare(["who was the engineer", "which animal eats fish"])
        contexts = model.read(batch, 3)
        found = empty_logprobs(model, contexts)
        end = torch.tensor([model.generator.start_token])
        out = model.generator.model(
            encoder_outputs=(contexts.states,),
            attention_mask=contexts.mask.long(),
            decoder_input_ids=end.expand(len(contexts.states), 1),
        )
    expected = out.logits[:, 0].log_softmax(dim=-1)[:, model.generator.end_token].view(2, 3)
    torch.testing.assert_close(found, expected)


def test_the_sentence_that_holds_an_answer():
    text = "It burned whale oil. Thomas Aldous built it in 1834. He died in 1850.\nA line of Thomas."
    assert answer_sentence(text, "thomas aldous") == "Thomas Aldous built it in 1834."
    assert answer_sentence(text, "1850") == "He died in 1850."
    assert answer_sentence(text, "Aldous, Thomas") == "Thomas Aldous built it in 1834."
    assert answer_sentence(text, "nobody") == "" == answer_sentence(text, "")


def test_a_passage_encoder_of_dprs_serves_too(tmp_path, reader):
    """Any encoder does, by its two folders."""
    from conftest import bert_tokenizer, tiny_question_encoder

    from rag.encoders.dpr import PassageEncoder, QuestionEncoder

    tokenizer = bert_tokenizer()
    PassageEncoder(tiny_passage_encoder(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "p")
    QuestionEncoder(tiny_question_encoder(len(tokenizer)), tokenizer).save_pretrained(tmp_path / "q")
    notes = write_notes(tmp_path / "notes")
    both = f"passage_encoder={tmp_path / 'p'}", f"question_encoder={tmp_path / 'q'}"
    assert open_documents(notes, reader, *both, "n_docs=2")("which animal eats fish").answer
