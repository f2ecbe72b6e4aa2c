"""Ask a trained model in the terminal: python -m rag.ask checkpoint=RUN [key=value …] ["question"]

Without a question, asks for one after the other; a pipe's lines are questions too. Beside each answer stand log p(y|x)
and the K passages with p(z|x), before, and p(z|x,y), after the answer is known (section 2.1).
"""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.table import Table
from rich.text import Text

from rag.ask.command import DOUBT, about_documents, check_documents, check_doubt, opening, with_folder_quoted
from rag.ask.conversation import Conversation
from rag.ask.pipe import lines_at_hand
from rag.ask.printed import evidence, quoted, several, shortened, shown, supports
from rag.checkpoint_config import from_checkpoint
from rag.cli import one_sentence, run_script
from rag.compose import choices, compose_config, key_of, nearest
from rag.errors import UserError
from rag.lazy import many_imports
from rag.safe_text import json_text, printable, say
from rag.terminal import Terminal

if TYPE_CHECKING:  # torch and the models' code take seconds, which a mistake in the command need not wait for
    from rag.ask.session import Choice, Reply, Session
    from rag.decoding.settings import Decoding

USAGE = """
python -m rag.ask documents=FOLDER [key=value …] ["question"]
python -m rag.ask checkpoint=RUN [key=value …] ["question"]

documents=FOLDER answers questions about the text and Markdown files in a folder, without any training: the answer, the
sentence that holds it, and the passages that were read, or that it does not know. An index is kept beside the folder.

  python -m rag.ask documents=notes "Who built the lighthouse?"
  python -m rag.ask documents=notes abstain=true             "not in these documents" instead of a guess
  python -m rag.ask documents=notes checkpoint=RUN           another model reads

checkpoint=RUN answers with the model of a run folder of train.py: the answer, log p(y|x), and the passages it read,
with p(z|x) and p(z|x,y). Without a question, both start a session (/help lists its commands) or read questions from a
pipe, one a line.

  python -m rag.ask checkpoint=outputs/demo/rag_token "Where did Bertha Spalding live?"
  python -m rag.ask checkpoint=…                             a session: questions and /commands until Ctrl-D
  python -m rag.ask checkpoint=… n_docs=10 decoding=beam4    more passages, beam search
  python -m rag.ask checkpoint=… index.path=indexes/other    another index
  python -m rag.ask checkpoint=… int8=true                   on a CPU, the generator's products in 8 bits
  python -m rag.ask checkpoint=… abstain=true                after python -m rag.analysis answerability run=RUN
  python -m rag.ask checkpoint=facebook/rag-token-nq index.path=…            a released model over an index
  python -m rag.ask checkpoint=… decoding=sample decoding.max_new_tokens=200    long-form text, sampled
  python -m rag.ask checkpoint=… conversation=true           earlier turns are the context of the next until /reset
  python -m rag.ask checkpoint=… json=true < questions.txt > answers.jsonl
"""

CHANGEABLE = ("corpus", "index", "decoding", "n_docs")
OWN = ("checkpoint", "trust", "conversation", "json", "batch_size", "seed", "history", "int8", *DOUBT)
COMMANDS = {
    "/docs K": "read K passages",
    "/decoding NAME [key=value …]": "decode in another way: checkpoint (as trained), {decodings}",
    "/index NAME": "exchange the index: a name below, or the folder of an index; {indexes}",
    "/conversation": "use earlier questions and answers as the context of the next, or stop doing so",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave, as Ctrl-D and Ctrl-C do",
}
_SETTING = re.compile(r"(~|\+{0,2})[A-Za-z_][\w./@]*=|~\w|-")


def check(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the checkpoint or documents asked; UserError for what is wrong with it or the command."""
    if cfg.batch_size < 1:
        raise UserError(f"batch_size={cfg.batch_size} answers nothing: give 1 or more")
    if about_documents(overrides):
        check_documents(cfg.documents)
        check_doubt(cfg)
        return cfg
    saved = from_checkpoint(cfg, overrides, "rag.ask", CHANGEABLE, OWN)
    check_doubt(saved, saved.checkpoint)
    return saved


def ask(cfg: DictConfig, overrides: list[str], question: str) -> None:
    saved = check(cfg, overrides)
    documents = about_documents(overrides)
    say(opening(saved) if documents else f"opening {saved.checkpoint}", file=sys.stderr)
    with many_imports():
        import torch

        from rag.ask.documents import session_of
        from rag.ask.session import open_session

        session, choice, indexes = (session_of if documents else open_session)(saved)
    torch.manual_seed(saved.seed)

    def decoding(settings: list[str]) -> "Decoding":
        settings = [*(each for each in overrides if not key_of(each).startswith("decoding")), *settings]
        again = compose_config("documents" if documents else "ask", settings)
        if documents:
            return instantiate(again.decoding)
        return instantiate(from_checkpoint(again, settings, "rag.ask", CHANGEABLE, OWN).decoding)

    talk = Talk(session, choice, indexes, decoding, saved.conversation, saved.json)
    talk.tell(talk.state())
    if question:
        talk.take([question])
    elif sys.stdin.isatty():
        talk.tell("/help lists the commands, Ctrl-D leaves")
        with line_editing(talk, saved.history):
            talk.interactively()
    else:
        talk.from_pipe(sys.stdin.fileno(), saved.batch_size)
    if talk.unanswered:
        raise UserError(f"{talk.unanswered} of {talk.asked} questions could not be answered: see above")


class Talk:
    """Questions and commands in, answers out; commands change how the next question is answered.

    Answers go to standard output, everything else to standard error.
    """

    def __init__(
        self,
        session: "Session",
        choice: "Choice",
        indexes: dict[str, Path],
        decoding: "Callable[[list[str]], Decoding]",
        conversation: bool = False,
        as_json: bool = False,
    ):
        self.session = session
        self.choice = choice
        self.indexes = indexes
        self.decoding = decoding  # from Hydra's overrides
        self.conversation = conversation
        self.as_json = as_json
        self.turns = Conversation()
        self.asked = self.unanswered = 0
        self.repeats = False  # whether the question is written above its answer
        self.console = Terminal(highlight=False)

    def tell(self, text: str) -> None:
        say(text, file=sys.stderr, flush=True)

    def state(self) -> str:
        """One line: the model, its memory, how it answers."""
        from rag.ask.session import describe_decoding

        model, choice = self.session.model, self.choice
        how = describe_decoding(choice.decoding)
        if choice.index is None:
            return f"{model.title}, {how}"
        over = f"{self.index_name()} ({len(model.retriever.index):,} passages)"
        return f"{model.title} over {over}, K = {choice.n_docs}, {how}"

    def index_name(self) -> str:
        index = self.choice.index
        return next((name for name, folder in self.indexes.items() if folder == index), str(index))

    # -- where lines come from ----------------------------------------------------------------------

    def interactively(self) -> None:
        """Until /quit, Ctrl-D, or Ctrl-C at the prompt; Ctrl-C while an answer is computed gives it up."""
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.tell("")
                return
            try:
                if line and not self.take([line]):
                    return
            except KeyboardInterrupt:
                self.tell("given up")
            self.unanswered = 0  # it was told, and may be asked again

    def from_pipe(self, descriptor: int, batch_size: int) -> None:
        """Every line of a pipe or file, as they come; nobody sees the questions beside their answers otherwise."""
        self.repeats = True
        try:
            for lines in lines_at_hand(descriptor, 1 if self.conversation else batch_size):
                lines = [line.strip() for line in lines if line.strip()]
                while lines:  # a command holds for the questions after it
                    count = next((n for n, line in enumerate(lines) if line.startswith("/")), len(lines)) or 1
                    if not self.take(lines[:count]):
                        return
                    lines = lines[count:]
        except BrokenPipeError:  # whoever reads has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            sys.exit(130)

    def take(self, lines: Sequence[str]) -> bool:
        """Answer questions or obey a command; False: leave. A mistake is told and nothing is changed."""
        try:
            if lines[0].startswith("/"):
                return self.obey(lines[0])
            self.answer(lines)
        except (UserError, InstantiationException, OmegaConfBaseException) as error:
            self.tell(f"error: {one_sentence(error)}")
        return True

    # -- questions ----------------------------------------------------------------------------------

    def answer(self, questions: Sequence[str]) -> None:
        for question, reply in zip(questions, self.replies(questions), strict=True):
            self.asked += 1
            if isinstance(reply, UserError):
                self.unanswered += 1
                self.tell(f"error: {shortened(question)}: {reply}")
                if self.as_json:
                    print(
                        json_text({"question": question, "error": str(reply)}),
                        flush=True,
                    )
                continue
            if self.conversation:
                self.turns = self.turns.and_then(question, reply)
            if self.as_json:
                record = reply.record()
                if reply.question != question:
                    record = (
                        {"question": question, "context": reply.question} | record | {"question": question}
                    )
                print(json_text(record), flush=True)
            else:
                if self.repeats:
                    self.console.print(Text(printable(question), style="italic"), soft_wrap=True)
                self.show(reply)

    def replies(self, questions: Sequence[str]) -> "list[Reply | UserError]":
        """The answers to a batch; where one of it cannot be answered, each by itself."""
        asked = (
            [self.session.in_context(self.turns.context, each) for each in questions]
            if self.conversation
            else questions
        )
        try:
            return list(self.session.answer(asked, self.choice))
        except UserError as error:
            if len(questions) == 1:
                return [error]
            return [reply for question in questions for reply in self.replies([question])]

    def show(self, reply: "Reply") -> None:
        answer = Text(printable(reply.answer) or "(an empty answer)", style="bold")
        if reply.abstained:
            self.console.print(Text(f"{reply.answer.capitalize()}.", style="bold"), "The nearest passages:")
        else:
            if reply.known is False:
                self.console.print(Text("I do not know: nothing that I read answers this.", style="bold"))
                answer = Text(f"  best guess: {answer.plain}")
            self.console.print(answer, Text(f"  log p(y|x) = {reply.logprob:.3f}", style="dim"))
            if reply.known is not None and reply.sources:
                self.console.print(quoted(reply), soft_wrap=True)
        for line in [*several(reply), *supports(reply), *evidence(reply)]:
            self.console.print(line, soft_wrap=True)
        for text, logprob in reply.others:
            self.console.print(Text(f"  or: {printable(text)}"), Text(f"  {logprob:.3f}", style="dim"))
        if reply.sources:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column("", justify="right")
            table.add_column("passage", ratio=1)
            table.add_column("p(z|x)", justify="right", no_wrap=True)
            table.add_column("p(z|x,y)", justify="right", no_wrap=True)
            for rank, source in enumerate(reply.sources, start=1):
                table.add_row(
                    str(rank),
                    shown(source, reply.quoted, with_file=reply.known is not None),
                    f"{source.prior:.3f}",
                    f"{source.posterior:.3f}",
                )
            self.console.print(table)
        self.console.file.flush()

    # -- commands -----------------------------------------------------------------------------------

    def obey(self, line: str) -> bool:
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        obeyed = {
            "/docs": self.change_docs,
            "/decoding": self.change_decoding,
            "/index": self.change_index,
            "/conversation": self.change_conversation,
            "/reset": self.reset,
            "/help": self.help,
            "/quit": None,
        }
        if command not in obeyed:
            raise UserError(f"{command} is no command: {nearest(command, list(obeyed))}")
        change = obeyed[command]
        if change is not None:
            change(argument)
        return change is not None

    def change(self, choice: "Choice") -> None:
        """Once it is known to work."""
        self.session.check(choice)
        self.choice = choice
        self.tell(self.state())

    def change_docs(self, argument: str) -> None:
        self.needs_passages("/docs")
        if not argument.isdecimal():
            raise UserError(f"/docs {argument}: a whole number of passages is expected, as in /docs 10")
        self.change(replace(self.choice, n_docs=int(argument)))

    def change_decoding(self, argument: str) -> None:
        if not argument:
            raise UserError(f"/decoding needs a name: checkpoint, {', '.join(choices('decoding'))}")
        name, *rest = argument.split()
        settings = [] if name == "checkpoint" else [f"decoding={name}"]
        if "=" in name:
            settings, rest = [], [name, *rest]
        self.change(
            replace(self.choice, decoding=self.decoding([*settings, *(f"decoding.{each}" for each in rest)]))
        )

    def change_index(self, argument: str) -> None:
        self.needs_passages("/index")
        folder = self.indexes.get(argument)
        if folder is None:
            if not argument or not Path(argument).expanduser().is_dir():
                raise UserError(
                    f"there is no index {argument}: {nearest(argument, list(self.indexes))}, "
                    "or give the folder of one"
                )
            folder = Path(argument).expanduser().resolve()
        self.change(replace(self.choice, index=folder))

    def needs_passages(self, command: str) -> None:
        if self.session.closed_book:
            raise UserError(f"{command} changes nothing: a closed-book model reads no passages")

    def change_conversation(self, argument: str) -> None:
        self.conversation = not self.conversation
        self.turns = Conversation()
        self.tell(
            "each question by itself" if not self.conversation else "a conversation begins; /reset forgets it"
        )

    def reset(self, argument: str) -> None:
        self.turns = Conversation()
        self.tell("the conversation is forgotten")

    def help(self, argument: str) -> None:
        names = {"decodings": ", ".join(choices("decoding")), "indexes": ", ".join(self.indexes)}
        lines = textwrap.TextWrapper(
            min(110, shutil.get_terminal_size().columns),
            subsequent_indent=" " * 31,
            break_long_words=False,  # names and paths stay whole, to be copied
            break_on_hyphens=False,
        )
        for command, does in COMMANDS.items():
            self.tell(lines.fill(f"{command:30} {does.format(**names)}"))
        self.tell(self.state())


@contextmanager
def line_editing(talk: Talk, history: str | None) -> Iterator[None]:
    """Arrow keys, completion of commands and names, and what was typed last time."""
    try:
        import readline
    except ImportError:  # Python without it: lines are read all the same
        yield
        return

    def complete(text: str, state: int) -> str | None:
        typed = readline.get_line_buffer().lstrip()
        names = [command.split()[0] + " " * (" " in command) for command in COMMANDS]
        if typed.startswith("/index "):
            names = list(talk.indexes)
        elif typed.startswith("/decoding "):
            names = ["checkpoint", *choices("decoding")]
        elif not typed.startswith("/"):
            names = []
        return [*(name for name in names if name.startswith(text)), None][state]

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(1000)
    if history is not None:
        with suppress(OSError):  # there is none yet
            readline.read_history_file(history)
    try:
        yield
    finally:
        if history is not None:
            with suppress(OSError):  # a place that cannot be written costs the history alone
                Path(history).parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(history)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Settings, key=value, and the words of the question; after "--" everything is the question."""
    settings: list[str] = []
    words: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            words += arguments[place + 1 :]
            break
        (settings if _SETTING.match(argument) else words).append(argument)
    return settings, " ".join(words).strip()


def main(arguments: Sequence[str]) -> None:
    settings, question = split_arguments(arguments)
    settings = with_folder_quoted(settings)
    body = partial(ask, overrides=settings, question=question)
    name = "documents" if about_documents(settings) else "ask"
    run_script(name, USAGE, body, settings, partial(check, overrides=settings))


if __name__ == "__main__":
    main(sys.argv[1:])
