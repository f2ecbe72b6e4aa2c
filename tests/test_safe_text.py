"""What somebody else wrote commands nothing: each medium is given the same hostile strings (tests/hostile.py)."""

import asyncio
import io
import json
import logging
import re
import socket
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hostile import HOSTILE
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from rag.ask.__main__ import Talk
from rag.ask.middleware import OwnHosts, own_names
from rag.ask.reply_html import answer_html, cards_html, conversation_html, heat_map_html
from rag.ask.session import Reply, Source
from rag.cli import _Printable, mistakes_in_one_sentence
from rag.errors import UserError
from rag.files import write_json
from rag.progress import progress_bar
from rag.reports import plots
from rag.reports.page import of_command, of_frame
from rag.reports.run_report import answers, write_run_report
from rag.safe_text import fenced, html, json_text, markdown, printable, say
from rag.sweep import show as show_sweep
from rag.terminal import Terminal

each_string = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


def commands_nothing(shown: str) -> None:
    """Nothing but text, line ends, and rich's own colours."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).split("\n")
    assert [printable(line) for line in lines] == lines


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


# -- terminal and pipes ----------------------------------------------------------------------------


def test_what_is_printable_stays_as_it_is():
    for text in ("", "Übung, naïve: 3 × 4 ≠ 5 – «π»", "नमस्ते می‌خواهم 東京 👩‍🔬 é"):
        assert printable(text) == text
    assert printable("a\tb\nc\u00a0d") == "a b c d"
    assert printable("co\u00adoperate \u202eabc") == "cooperate abc"


@each_string
def test_a_terminal_obeys_nobody_else(text, capsys):
    say(text)
    commands_nothing(capsys.readouterr().out)
    with pytest.raises(SystemExit), mistakes_in_one_sentence():
        raise UserError(f"{text} was found")
    commands_nothing(capsys.readouterr().err)
    record = logging.LogRecord("rag", logging.WARNING, "", 1, "%s left out", (text,), None)
    commands_nothing(_Printable().format(record))


@each_string
def test_rich_shows_text_and_no_markup(text):
    out = io.StringIO()
    console = Terminal(file=out, width=300, force_terminal=True)
    table = Table("what", text, title=text)
    table.add_row(text, Text(text))
    console.print(table)
    console.print(text)
    commands_nothing(out.getvalue())
    if text.isprintable():  # nothing of it is taken for markup
        assert out.getvalue().count(text) == 5


@each_string
def test_bars_and_tables_of_hostile_names(text, capsys):
    with progress_bar(text, 2, "steps") as advance:
        advance(2)
    show_sweep(["lr", text], [["1", text]])
    told = capsys.readouterr()
    commands_nothing(told.out)
    commands_nothing(told.err)


def reply(text: str) -> Reply:
    source = Source(text, text, f"{text} Paris.", 0.5, 0.5, (0.25, 0.75))
    return Reply(text, text, -1.0, (text, "(end)"), (source,), ((text, -2.0),), known=True)


@each_string
def test_an_answer_in_a_pipe(text, capsys):
    class Answers:
        def answer(self, questions, choice):
            return [reply(text) for _ in questions]

    for as_json in (False, True):
        talk = Talk(Answers(), None, {}, lambda _: None, as_json=as_json)  # type: ignore[arg-type]
        talk.repeats = True
        talk.answer([text])
        told = capsys.readouterr()
        commands_nothing(told.out)
        if as_json:
            assert json.loads(told.out)["answer"] == text


# -- data ------------------------------------------------------------------------------------------


@each_string
def test_json_is_the_same_data_and_can_be_shown(text, tmp_path):
    for indent in (None, 1):
        written = json_text({text: [text]}, indent)
        assert json.loads(written) == {text: [text]}
        commands_nothing(written)
        written.encode()
    write_json(tmp_path / "x.json", text)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == text


# -- Markdown --------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def commonmark(page: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(page)


def of_mkdocs(page: str) -> str:
    python_markdown = pytest.importorskip("markdown")
    return python_markdown.markdown(page, extensions=["tables", "fenced_code", "footnotes"])


@each_string
@pytest.mark.parametrize("render", [commonmark, of_mkdocs])
def test_markdown_reads_as_the_text_and_nothing_else(text, render: Callable[[str], str]):
    page = f"# {markdown(text)}\n\nx *{markdown(text)}* **{markdown(text)}**\n\n"
    page += f"| {markdown(text)} | b |\n| --- | --- |\n| c | **{markdown(text)}** |\n"
    seen = Seen(render(page))
    assert seen.tags <= {"h1", "p", "em", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert not seen.attributes
    assert " ".join(seen.text.split()).count(one_line(text)) == 5
    commands_nothing(page)
    assert "://" not in page and "www." not in page  # of which GitHub would make links


@each_string
def test_nothing_ends_a_block_of_code(text):
    for lines in (fenced(f"{text} ``` ````"), of_command(["python", text])):
        seen = Seen(commonmark("\n".join([*lines, "after"])))
        assert seen.tags == {"pre", "code", "p"}
        commands_nothing("\n".join(lines))


@pytest.mark.filterwarnings(
    "ignore:constrained_layout not applied"
)  # a metric's name is longer than its axes
def test_reports(tmp_path):
    """Of a training and of an evaluation whose names, questions, passages and metrics are somebody else's."""
    text = "\n".join(HOSTILE.values())
    run = {"command": text, "commit": text, "machine": text, "versions": {text: text}}
    measured = {
        "metric": "c\x9b1 \ud800",
        "k": None,
        "split": text,
        "value": 0.5,
        "low": 0.0,
        "high": 1.0,
        "n": 2,
    }
    trained = {"steps": 1, "training_seconds": 0.0, "metrics": dict.fromkeys(HOSTILE.values(), 0.5)}
    evaluated = {"split": text, "questions": 1, "n_docs": None, "metrics": [measured | {"condition": text}]}
    passage = {"prior": 0.25, "posterior": 0.75, "gold": True, "title": text, "text": text}
    answered = {
        "question": text,
        "answers": [text],
        "prediction": text,
        "logprob": None,
        "passages": [passage],
    }
    for name, result in (("trained", trained), ("evaluated", evaluated)):
        folder = tmp_path / name
        for file, value in (("run", run), ("result", result)):
            write_json(folder / f"{file}.json", value)
        config = {"name": text, "split": text, "checkpoint": text, "seed": text, "monitor": text}
        write_json(folder / "config.yaml", config)  # JSON is YAML
        (folder / "predictions.jsonl").write_text(json_text(answered) + "\n", encoding="utf-8")
        page = write_run_report(folder).read_text("utf-8")
        commands_nothing(page)
        seen = Seen(commonmark(page))
        allowed = {
            "h1",
            "h2",
            "p",
            "em",
            "strong",
            "pre",
            "code",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
        }
        assert seen.tags - allowed <= {"img"}
        assert set(seen.attributes) <= {"src", "alt"} and seen.attributes.get("src", set()) <= {"report.png"}
    page = "\n".join(answers(tmp_path / "evaluated" / "predictions.jsonl", 1, text))
    assert " ".join(Seen(commonmark(page)).text.split()).count(one_line(text)) == 6


@each_string
def test_a_data_frame(text):
    pd = pytest.importorskip("pandas")
    if any("\ud800" <= each <= "\udfff" for each in text):
        pytest.skip("pandas has no columns of such names")
    page = "\n".join(of_frame(pd.DataFrame({text: [text]}, index=pd.Index([text], name=f"{text} "))))
    seen = Seen(commonmark(page))
    assert seen.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert " ".join(seen.text.split()).count(one_line(text)) == 4


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_picture_takes_no_text_for_a_formula(tmp_path):
    figure, axes = plots.new_figure(2, 2)
    axes[0, 0].set_title(HOSTILE["formula"])
    plots.save(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


# -- the page --------------------------------------------------------------------------------------


@each_string
def test_the_page(text):
    of = reply(text)
    for page in (
        answer_html(of, text),
        cards_html(of),
        heat_map_html(of),
        conversation_html([text, text]),
        f'<p title="{html(text)}">{html(text)}</p>',
    ):
        commands_nothing(page)
        seen = Seen(page)
        assert not seen.tags & {"script", "img", "a", "b", "iframe", "link", "style"}
        assert set(seen.attributes) <= {"class", "style", "title", "role", "aria-live"}
        assert not any("alert" in each for each in seen.attributes.get("style", ()))
    assert Seen(conversation_html([text, text])).text.count(printable(text)) == 2


def asked(app: OwnHosts, *hosts: str, kind: str = "http") -> int:
    """The status that a request with these Host headers gets; of a websocket, 1008 where it is refused."""
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"accept", b"*/*"), *((b"Host", host.encode()) for host in hosts)]
    asyncio.run(app({"type": kind, "headers": headers}, None, send))
    return sent[0].get("status") or sent[0]["code"]


def test_the_page_is_served_under_no_other_name():
    """A name that its owner lets point to this machine (DNS rebinding) gets nothing, whatever the port."""

    async def served(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    app = OwnHosts(served, own_names("127.0.0.1", ["Ask.Example"]))
    for host in (
        "localhost:7860",
        "127.0.0.1",
        "127.0.0.1:7860",
        "[::1]:7860",
        "LOCALHOST",
        "ask.example.:443",
    ):
        assert asked(app, host) == 200, host
    for host in (
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "a b",
    ):
        assert asked(app, host) == 421, host
        assert asked(app, host, kind="websocket") == 1008, host
    assert asked(app) == 421 and asked(app, "localhost", "evil.example") == 421
    assert asked(OwnHosts(served, own_names("0.0.0.0", [])), socket.gethostname()) == 200
    assert asked(app, "192.168.0.7:7860") == 200  # an address in numbers is nobody's name
    assert asked(OwnHosts(served, own_names("my.host", [])), "my.host") == 200
