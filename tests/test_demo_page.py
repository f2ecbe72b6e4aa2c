"""The page: its HTML, and the page itself in a headless Chromium."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSAGES, QUESTIONS, build_tiny_index
from matplotlib.colors import to_rgb
from tiny_runs import write_run

from rag.ask.conversation import Conversation
from rag.ask.page import OWN, Page, closed_book_run, example_questions, main
from rag.ask.reply_html import answer_html, cards_html, conversation_html, heat_map_html, marked
from rag.ask.session import Choice, Reply, Session, Source, open_session
from rag.checkpoint_config import CHANGEABLE, from_checkpoint
from rag.compose import compose_config
from rag.encoders.dpr import PassageEncoder
from rag.errors import UserError
from rag.files import write_json
from rag.reports.contrast import contrast
from rag.runs import PROJECT

PARIS = Source("1", "Paris <3", "Paris & the Seine", 0.25, 0.875, (1.0, 0.75))
ROME = Source("2", "", "Rome", 0.75, 0.125, (0.0, 0.25))
REPLY = Reply("who?", "the <b>Seine</b>", -1.5, ("the", "<b>"), (PARIS, ROME), (("Spree", -2.0),))


def test_the_heat_map_holds_each_number_once():
    html = heat_map_html(REPLY)
    assert re.findall(r'class="rag-prior" style="[^"]*">([\d.]+)<', html) == ["0.25", "0.75"]
    assert re.findall(r'class="rag-posterior" style="[^"]*">([\d.]+)<', html) == [
        "1.00",
        "0.75",
        "0.00",
        "0.25",
    ]
    assert re.findall(r'<th class="rag-token">(.*?)</th>', html) == ["the", "&lt;b&gt;"]
    assert "rgb(8, 48, 107); color: #ffffff" in html  # of 1
    assert "rgb(239, 246, 252); color: #000000" in html  # of 0
    assert "1&ensp;Paris &lt;3<" in html and "2&ensp;passage 2<" in html
    sequence = Reply("who?", "Seine", -1.0, ("Seine",), (Source("1", "T", "t", 1.0, 1.0, None),))
    assert "<table" not in heat_map_html(sequence) and "RAG-Token" in heat_map_html(sequence)
    assert heat_map_html(Reply("who?", "Seine", -1.0, ("Seine",), ())) == ""  # closed book


def test_every_number_of_the_heat_map_can_be_read():
    """White on the blue of .5 had a contrast of 4.0; WCAG asks for 4.5 (success criterion 1.4.3)."""
    values = tuple(n / 100 for n in range(101))
    source = Source("1", "T", "t", 0.5, 0.5, values)
    html = heat_map_html(Reply("who?", "Seine", -1.0, ("x",) * len(values), (source,)))
    cells = re.findall(r"background: rgb\((\d+), (\d+), (\d+)\); color: (#\w+)", html)
    assert len(cells) == len(values) + 1
    for *background, text in cells:
        assert contrast([int(each) / 255 for each in background], to_rgb(text)) >= 4.5


def test_what_others_wrote_is_escaped_and_the_answers_words_are_marked():
    assert marked("Paris & the Seine", "seine") == "Paris &amp; the <mark>Seine</mark>"
    cards = cards_html(REPLY)
    assert "Paris &lt;3" in cards and "Paris &amp; the <mark>Seine</mark>" in cards
    assert re.findall(r"width: ([\d.]+)%", cards) == ["25.0", "87.5", "75.0", "12.5"]
    assert re.findall(r'rag-number">([\d.]+)<', cards) == ["0.250", "0.875", "0.750", "0.125"]
    answer = answer_html(REPLY, "RAG-<Token>")
    assert "the &lt;b&gt;Seine&lt;/b&gt;" in answer and "RAG-&lt;Token&gt;" in answer
    assert "log p(y|x) = −1.500" in answer and "or: Spree (-2.00)" in answer
    assert "<em>an empty answer</em>" in answer_html(Reply("who?", "", -1.0, (), ()), "x")


# -- what the page does --------------------------------------------------------------------------


def test_of_documents_the_page_tells_where_an_answer_stands_or_that_it_knows_none():
    text = "It <burned> oil. Thomas Aldous built it."
    source = Source("notes/l&h.md#2", "The lighthouse", text, 0.75, 1.0, None)
    reply = Reply("who?", "thomas aldous", -0.5, ("thomas", "aldous"), (source,), known=True)
    html = answer_html(reply, "RAG-Sequence")
    assert "<strong>notes/l&amp;h.md</strong>: <mark>Thomas Aldous</mark> built it." in html
    assert "I do not know" not in html and 'rag-note">notes/l&amp;h.md</span>' in cards_html(reply)
    html = answer_html(replace(reply, known=False), "RAG-Sequence")
    assert "I do not know" in html and "best guess: thomas aldous" in html
    assert "l&amp;h.md" not in answer_html(replace(reply, known=None), "x")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, passage_encoder: PassageEncoder) -> Path:
    root = tmp_path_factory.mktemp("page")
    index = build_tiny_index(root / "indexes" / "first", passage_encoder)
    build_tiny_index(root / "indexes" / "second", passage_encoder, PASSAGES[:4])
    for model in ("rag_token", "closed_book"):
        write_run(root / model, model, index)
    return root


def opened(run: Path) -> tuple[Session, Choice, dict[str, Path]]:
    cfg = compose_config("demo_page", [f"checkpoint={run}"])
    return open_session(from_checkpoint(cfg, [], "rag.ask.page", CHANGEABLE, OWN))


def test_the_pages_buttons(runs):
    session, choice, indexes = opened(runs / "rag_token")
    beside, its_choice, _ = opened(runs / "closed_book")

    def closed_book(questions: list[str]) -> list[Reply]:
        return beside.answer(questions, its_choice)

    page = Page(session, choice, indexes, {"as trained": choice.decoding}.__getitem__, closed_book, [])
    reply = session.answer(QUESTIONS[:1], Choice(indexes["second"], 2, choice.decoding))[0]
    asked = page.ask(f" {QUESTIONS[0]} ", "second", 2, "as trained")
    assert asked == (
        answer_html(reply, "RAG-Token"),
        answer_html(closed_book(QUESTIONS[:1])[0], "closed book, without any passage"),
        heat_map_html(reply),
        cards_html(reply),
    )
    box, turns, chat, _ = page.say(QUESTIONS[0], Conversation(), "second", 2, "as trained")
    assert (box, turns.shown) == ("", (QUESTIONS[0], reply.answer))
    _, turns, chat, cards = page.say("and Rome?", turns, "first", 3, "as trained")
    context = f"{QUESTIONS[0]}\n{reply.answer}\nand Rome?"
    second = session.answer([context], choice)[0]
    assert turns.shown == (QUESTIONS[0], reply.answer, "and Rome?", second.answer)
    assert chat == conversation_html(turns.shown)
    assert cards == cards_html(second)
    for call in (
        lambda: page.ask(" ", "first", 2, "as trained"),
        lambda: page.say("", Conversation(), "first", 2, "as trained"),
        lambda: page.ask("who?", "third", 2, "as trained"),
        lambda: page.ask("who?", "second", 5, "as trained"),
    ):
        with pytest.raises(UserError):
            call()


def test_the_closed_book_run_is_found_beside_the_checkpoint(tmp_path):
    assert closed_book_run(str(tmp_path / "rag"), "beside") is None
    (tmp_path / "closed_book").mkdir()
    assert closed_book_run(str(tmp_path / "rag"), "beside") is None  # it is not finished
    write_json(tmp_path / "closed_book" / "result.json", {})
    assert closed_book_run(str(tmp_path / "rag"), "beside") == tmp_path / "closed_book"
    assert closed_book_run(str(tmp_path / "rag"), None) is None
    assert closed_book_run(str(tmp_path / "rag"), "other") == Path("other")


def test_questions_for_instance(tmp_path):
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(f'{{"question": "q{n}?", "answers": ["a"]}}\n' for n in range(9)))
    given = ["task=qa", "task.passages=x", "task.train=x", f"task.dev={file}"]
    assert example_questions(compose_config("demo_page", given).task) == ["q0?", "q2?", "q4?", "q6?"]
    given[-1] = "task.dev=nowhere.jsonl"
    assert example_questions(compose_config("demo_page", given).task) == []


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(list(arguments))
    return capsys.readouterr().err


def test_without_gradio(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    error = stopped(capsys, "checkpoint=x")
    assert error.startswith("error: the page needs Gradio, which is not installed")
    assert error.endswith('python -m pip install -e ".[demo]" -c constraints.txt\n')


def test_help_is_short_and_has_examples(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("python -m rag.ask.page") and len(lines) < 25


# -- in a browser --------------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
PATIENCE = 240  # seconds, on a machine with much else to do


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """The page, served by a process of its own."""
    for package in ("gradio", "selenium"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install -e ".[dev,demo]" -c constraints.txt')
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rag.ask.page", f"checkpoint={runs / 'rag_token'}", f"port={port}"]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as page:
        assert page.stdout and page.stderr
        try:
            line = page.stdout.readline()
            assert f"answers at http://127.0.0.1:{port}/ until Ctrl-C" in line, page.stderr.read()
            yield f"http://127.0.0.1:{port}/"
        finally:
            page.terminate()


@pytest.fixture
def browser(address: str) -> Iterator[Any]:
    """A Chromium for which there is no other machine, and which writes down every request."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(PATIENCE)
        driver.get(address)
        yield driver
    finally:
        driver.quit()


def seen(browser: Any, selector: str, text: str = "") -> list[Any]:
    """The elements of a selector, once there are any that are shown and hold `text`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]
        if found and any(text in each.text for each in found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {selector} with {text!r} in {browser.find_element('tag name', 'body').text}")


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_a_question_in_a_browser(runs, address, browser):
    """Asked and answered, with the heat map, the passages, the closed book, another index, and a conversation."""
    from selenium.webdriver.common.keys import Keys

    session, choice, indexes = opened(runs / "rag_token")
    reply = session.answer(QUESTIONS[:1], choice)[0]
    box = seen(browser, "#question textarea, #question input")[0]
    box.send_keys(QUESTIONS[0], Keys.ENTER)

    cells = seen(browser, "#heat_map td.rag-posterior")
    by_token = [value for source in reply.sources for value in source.by_token or ()]
    assert len(cells) == len(reply.sources) * len(reply.tokens) == len(by_token)
    assert [float(cell.text) for cell in cells] == pytest.approx(by_token, abs=0.011)
    assert len({cell.value_of_css_property("background-color") for cell in cells}) > 1  # it is coloured
    assert [each.text for each in seen(browser, "#heat_map th.rag-token")] == list(reply.tokens)
    assert seen(browser, "#answer .rag-text")[0].text == reply.answer
    assert "closed book" in seen(browser, "#closed_book")[0].text
    cards = seen(browser, "#passages .rag-card")
    assert [source.text in card.text for source, card in zip(reply.sources, cards, strict=True)] == [True] * 3

    button = seen(browser, "#ask")[0]
    assert button.size["height"] < 0.7 * seen(browser, "#question")[0].size["height"]
    colours = [button.value_of_css_property(name) for name in ("background-color", "color")]
    assert contrast(*([int(n) / 255 for n in re.findall(r"\d+", each)[:3]] for each in colours)) >= 4.5

    index = seen(browser, "#index input")[0]  # another edition
    index.click()
    seen(browser, "#index ul li, [role=option]", "second")
    index.send_keys(Keys.CONTROL, "a")
    index.send_keys("second", Keys.ENTER)
    seen(browser, "#ask")[0].click()
    swapped = session.answer(QUESTIONS[:1], Choice(indexes["second"], 3, choice.decoding))[0]
    assert {source.id for source in swapped.sources} != {source.id for source in reply.sources}
    seen(browser, "#passages .rag-card", next(s.text for s in swapped.sources if s not in reply.sources))

    next(tab for tab in seen(browser, "button[role=tab]") if tab.text == "Conversation").click()
    box = seen(browser, "#say textarea, #say input")[0]
    box.send_keys(QUESTIONS[1], Keys.ENTER)
    seen(browser, "#chat .rag-asked", QUESTIONS[1])
    hostile = "Seine <img src=x onerror=document.title=1> ${7*7} {{7*7}} <b>b</b>"
    box.send_keys(hostile, Keys.ENTER)
    seen(browser, "#chat .rag-asked", hostile)
    assert not browser.find_elements("css selector", "#chat img, #chat b")
    seen(browser, "#read .rag-card")
    seen(browser, "#reset")[0].click()
    deadline = time.monotonic() + PATIENCE
    while QUESTIONS[1] in browser.find_element("id", "chat").text and time.monotonic() < deadline:
        time.sleep(0.2)
    assert QUESTIONS[1] not in browser.find_element("id", "chat").text

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    asked |= {e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"}
    elsewhere = {url for url in asked if not url.startswith((address, "data:", "blob:", "chrome:"))}
    assert len(asked) > 10 and not elsewhere
    refused = [
        entry["message"] for entry in browser.get_log("browser") if "Content Security" in entry["message"]
    ]
    assert not refused
