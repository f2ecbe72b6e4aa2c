"""A page to ask a trained model on: python -m rag.ask.page checkpoint=RUN [key=value …]

The answer beside the closed-book model's, the passages with p(z|x) and p(z|x,y), RAG-Token's posterior of each token
(figure 2), another index, K or decoding for any question, and conversations. Gradio serves it to this machine alone;
the page asks nobody else for anything, which its Content-Security-Policy makes the browser keep to.
"""

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from rag.ask.__main__ import CHANGEABLE
from rag.ask.command import DOUBT, about_documents, check_documents, check_doubt, opening, with_folder_quoted
from rag.ask.conversation import Conversation
from rag.checkpoint_config import from_checkpoint
from rag.cli import run_script
from rag.compose import choices, compose_config
from rag.errors import UserError
from rag.safe_text import html, markdown, say

USAGE = """
python -m rag.ask.page documents=FOLDER [key=value …]
python -m rag.ask.page checkpoint=RUN [key=value …]

Serves a web page to ask about a folder of text and Markdown, or the model of a run folder of train.py, at
http://127.0.0.1:7860 until Ctrl-C. Listens on localhost by default and loads nothing from the network. Needs the extra
"demo":
python -m pip install -e ".[demo]" -c constraints.txt

  python -m rag.ask.page documents=notes
  python -m rag.ask.page checkpoint=outputs/demo/rag_token
  python -m rag.ask.page checkpoint=… closed_book=outputs/closed    also show this run's answer; null: none
  python -m rag.ask.page checkpoint=… n_docs=10 decoding=beam4      the page's initial settings
  python -m rag.ask.page checkpoint=… index.path=indexes/other      another index
  python -m rag.ask.page documents=notes abstain=true               "not in these documents" instead of a guess
  python -m rag.ask.page checkpoint=… port=8000                     another port
  python -m rag.ask.page checkpoint=… host=0.0.0.0                  listen on every network interface
"""

OWN = ("checkpoint", "trust", "closed_book", "host", "port", "names", "seed", "int8", *DOUBT)
MOST_PASSAGES = 50  # that can be chosen on the page
AS_TRAINED = "as trained"


def demo_page(cfg: DictConfig, overrides: list[str]) -> None:
    documents = about_documents(overrides)
    saved = cfg if documents else from_checkpoint(cfg, overrides, "rag.ask.page", CHANGEABLE, OWN)
    gradio = import_gradio()
    closed = None if documents else closed_book_run(saved.checkpoint, saved.closed_book)
    what = opening(saved) if documents else f"opening {saved.checkpoint}"
    say(what + (f" and {closed}" if closed else ""), file=sys.stderr)
    import torch

    from rag.ask.documents import session_of
    from rag.ask.session import open_session

    session, choice, indexes = (session_of if documents else open_session)(saved)
    torch.manual_seed(saved.seed)
    beside = None
    if closed is not None and not session.closed_book:
        other = compose_config("demo_page", [])
        other.checkpoint = str(closed)
        beside, its_choice, _ = open_session(from_checkpoint(other, [], "rag.ask.page", CHANGEABLE, OWN))
        if not beside.closed_book:
            raise UserError(
                f"closed_book={closed} is {beside.model.title}: give a run of a closed-book model"
            )
        beside = partial(beside.answer, choice=its_choice)

    @cache
    def decoding(name: str) -> Any:
        settings = [] if name == AS_TRAINED else [f"decoding={name}"]
        if documents:
            return instantiate(compose_config("documents", [*overrides, *settings]).decoding)
        again = compose_config("demo_page", [*overrides, *settings])
        again.checkpoint = saved.checkpoint
        settings = [*overrides, *settings]
        return instantiate(from_checkpoint(again, settings, "rag.ask.page", CHANGEABLE, OWN).decoding)

    examples = [] if documents else example_questions(saved.task)
    page = Page(session, choice, indexes, decoding, beside, examples)
    blocks = page.blocks(gradio)
    address = serve(gradio, blocks, saved.host, saved.port, list(saved.names))
    of = saved.documents if documents else saved.checkpoint
    say(f"{session.model.title} of {of} answers at {address} until Ctrl-C", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("closed", file=sys.stderr)
    finally:
        blocks.close(verbose=False)


def check_gradio() -> None:
    """UserError where the package is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page needs Gradio, which is not installed: in the project's folder, "
            'python -m pip install -e ".[demo]" -c constraints.txt'
        )


def import_gradio() -> Any:
    """The package, which tells nobody that it is used; UserError where it is not installed."""
    check_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return importlib.import_module("gradio")


def closed_book_run(checkpoint: str, setting: str | None) -> Path | None:
    """The run whose answer stands beside: the one that is given, or the checkpoint's sibling, if it is finished."""
    if setting is None:
        return None
    if setting != "beside":
        return Path(setting)
    sibling = Path(checkpoint).resolve().parent / "closed_book"
    return sibling if (sibling / "result.json").exists() else None


def example_questions(task: DictConfig, count: int = 4) -> list[str]:
    """A few of the dev questions, from all over the file; none where it cannot be read."""
    try:
        questions = [example.question for example in instantiate(task).examples("dev")]
    except Exception:  # the page does without: the files of a run may be on another machine
        return []
    return questions[:: max(1, len(questions) // count)][:count]


class Page:
    """What stands on the page and what its buttons do; nothing of a visitor is kept here."""

    def __init__(
        self,
        session: Any,
        choice: Any,
        indexes: dict[str, Path],
        decoding: Callable[[str], Any],
        closed_book: Callable[[list[str]], list[Any]] | None,
        examples: list[str],
    ):
        from rag.ask import reply_html

        self.session = session
        self.choice = choice
        self.indexes = indexes
        self.decoding = decoding
        self.closed_book = closed_book
        self.examples = examples
        self.html = reply_html
        self.name = session.model.title

    def chosen(self, index: str, n_docs: int, decoding: str) -> Any:
        """What the visitor chose, or UserError."""
        how = self.decoding(decoding)
        if self.session.closed_book:
            return type(self.choice)(None, 1, how)
        if index not in self.indexes:
            raise UserError(f"there is no index {index}")
        return type(self.choice)(self.indexes[index], int(n_docs), how)

    def ask(self, question: str, index: str, n_docs: int, decoding: str) -> tuple[str, str, str, str]:
        """Answer, closed-book answer, heat map and cards, as HTML."""
        question = question.strip()
        if not question:
            raise UserError("the question is empty: type one")
        reply = self.session.answer([question], self.chosen(index, n_docs, decoding))[0]
        beside = "" if self.closed_book is None else self.closed_book([question])[0]
        return (
            self.html.answer_html(reply, self.name),
            beside and self.html.answer_html(beside, "closed book, without any passage"),
            self.html.heat_map_html(reply),
            self.html.cards_html(reply),
        )

    def say(
        self, text: str, turns: Conversation, index: str, n_docs: int, decoding: str
    ) -> tuple[str, Conversation, str, str]:
        """An emptied box, the conversation with one more question and answer, the same as HTML, and cards."""
        text = text.strip()
        if not text:
            raise UserError("there is nothing to answer: type something")
        context = self.session.in_context(turns.context, text)
        reply = self.session.answer([context], self.chosen(index, n_docs, decoding))[0]
        turns = turns.and_then(text, reply)
        return "", turns, self.html.conversation_html(turns.shown), self.html.cards_html(reply)

    def blocks(self, gr: Any) -> Any:
        """The page itself."""

        def told(function: Callable[..., Any]) -> Callable[..., Any]:
            """A mistake is a note on the page."""

            def call(*given: Any) -> Any:
                try:
                    return function(*given)
                except UserError as error:
                    told = html(str(error))  # the note is HTML
                    raise gr.Error(told, title="This cannot be answered", print_exception=False) from error

            return call

        with gr.Blocks(title=f"Ask {self.name}", analytics_enabled=False) as blocks:
            gr.Markdown(
                f"## Ask {markdown(self.name)}\n"
                "Retrieval-augmented generation: the answer, and the passages it comes from."
            )
            settings = self.settings(gr)
            with gr.Tab("Question"):
                with gr.Row():
                    question = gr.Textbox(
                        label="Question", placeholder="Ask something", elem_id="question", scale=8, lines=1
                    )
                    button = gr.Button(
                        "Ask", variant="primary", size="md", elem_id="ask", scale=0, min_width=100
                    )
                if self.examples:
                    gr.Examples([[each] for each in self.examples], [question], label="Examples")
                with gr.Row():
                    answer = gr.HTML(elem_id="answer", min_height=90)
                    closed = gr.HTML(elem_id="closed_book", visible=self.closed_book is not None)
                heat = gr.HTML(elem_id="heat_map")
                cards = gr.HTML(elem_id="passages")
                shown = [answer, closed, heat, cards]
                for event in (question.submit, button.click):
                    event(
                        told(self.ask),
                        [question, *settings],
                        shown,
                        show_progress_on=answer,  # one clock, not one on each part of the reply
                        api_visibility="private",
                    )
            with gr.Tab("Conversation"):
                gr.Markdown(
                    "Earlier questions and answers are the context of the next, as many as the model can read."
                )
                turns = gr.State(Conversation())
                nothing = self.html.conversation_html([])
                chat = gr.HTML(nothing, elem_id="chat")
                with gr.Row():
                    said = gr.Textbox(
                        show_label=False, placeholder="Ask a question", elem_id="say", scale=8, lines=1
                    )
                    reset = gr.Button("Reset", size="md", elem_id="reset", scale=0, min_width=100)
                read = gr.HTML(elem_id="read")
                said.submit(
                    told(self.say),
                    [said, turns, *settings],
                    [said, turns, chat, read],
                    show_progress_on=chat,
                    api_visibility="private",
                )
                reset.click(
                    lambda: (Conversation(), nothing, ""), None, [turns, chat, read], api_visibility="private"
                )
        return blocks

    def settings(self, gr: Any) -> list[Any]:
        """Index, K and decoding of whatever is asked next."""
        own = next((name for name, folder in self.indexes.items() if folder == self.choice.index), None)
        retrieves = not self.session.closed_book
        most = MOST_PASSAGES
        if retrieves:
            most = max(self.choice.n_docs, min(most, len(self.session.model.retriever.index)))
        with gr.Row():
            index = gr.Dropdown(
                list(self.indexes),
                value=own,
                label="Index",
                elem_id="index",
                visible=retrieves,
                interactive=True,
            )
            n_docs = gr.Slider(
                1, most, self.choice.n_docs, step=1, label="Passages, K", elem_id="n_docs", visible=retrieves
            )
            decoding = gr.Dropdown(
                [AS_TRAINED, *choices("decoding")], value=AS_TRAINED, label="Decoding", elem_id="decoding"
            )
        return [index, n_docs, decoding]


def serve(gr: Any, blocks: Any, host: str, port: int | None, names: Sequence[str] = ()) -> str:
    """Start serving in the background; the address. names: others that this machine is asked under.

    Raises UserError where host or port cannot be had.
    """
    from starlette.middleware import Middleware  # type: ignore[import-not-found]

    from rag.ask.middleware import OwnHosts, Policy, own_names
    from rag.ask.reply_html import CSS

    theme = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800")
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=CSS,
            app_kwargs={
                "middleware": [Middleware(OwnHosts, names=own_names(host, names)), Middleware(Policy)],
                "docs_url": None,
                "redoc_url": None,
            },
        )
    except OSError as error:
        raise UserError(
            f"host={host} port={port} cannot be served ({error}): give another port=…, or port=null for a free one"
        ) from error
    return address


def main(arguments: list[str]) -> None:
    arguments = with_folder_quoted(arguments)

    def check(cfg: DictConfig) -> None:
        check_gradio()
        if about_documents(arguments):
            check_documents(cfg.documents)
            check_doubt(cfg)
            return
        saved = from_checkpoint(cfg, arguments, "rag.ask.page", CHANGEABLE, OWN)
        check_doubt(saved, saved.checkpoint)

    name = "documents" if about_documents(arguments) else "demo_page"
    run_script(name, USAGE, partial(demo_page, overrides=arguments), arguments, check)


if __name__ == "__main__":
    main(sys.argv[1:])
