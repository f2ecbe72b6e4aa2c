"""Countries of the World Factbook as Markdown files, thirty questions about them, and section 4.5 on real text.

    python -m benchmarks.world_leaders documents DATA [--checkpoint RUN] [--folder FOLDER] [setting=value …]
    python -m benchmarks.world_leaders swap DATA [--everything] [--checkpoint RUN] [--folder FOLDER] [setting=value …]

`documents` writes the countries of the 2021 edition into FOLDER, a file each, and asks QUESTIONS about leaders,
capitals and borders as python -m rag.ask does, and UNANSWERED, which the files do not answer: how many are right, how
many of the latter it refuses, and how long the first answer and the next took. `swap` asks who holds an office over the
editions of November 2016 and January 2021, and judges by the answers of both: exact match as a 2 × 2 table, of all
questions and of those whose answer changed; nothing is trained in between. It indexes the section on government of
every country, with --everything all sections, and with --only TEXT the passages of that section that hold the text.

DATA holds factbook_2016-11 and factbook_2021-01 as .passages.tsv.xz (id, text, title) and leaders_2016_2021.jsonl.gz.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rag.ask.documents import Documents, open_documents
from rag.cli import mistakes_in_one_sentence, quieten
from rag.evaluation.hot_swap import hot_swap
from rag.files import write_aside
from rag.index.readers import read_passages
from rag.metrics.qa import exact_match
from rag.metrics.record import swap_cells
from rag.tasks.example import Example
from rag.tasks.records import read_records

EDITIONS = {"2016": "factbook_2016-11.passages.tsv.xz", "2021": "factbook_2021-01.passages.tsv.xz"}
LEADERS = "leaders_2016_2021.jsonl.gz"
COUNTRIES = (
    "Algeria Argentina Austria Bangladesh Botswana Brazil Cambodia Chad Chile Egypt Estonia Ethiopia Finland "
    "France Georgia Ghana Hungary Iceland India Japan Jordan Kenya Laos Mexico Mongolia Morocco Nepal Niger Norway "
    "Peru Poland Portugal Senegal Thailand Uruguay Zambia"
).split()
# Written before anything was asked, from the files. An answer is right by exact match with one of these.
QUESTIONS: list[tuple[str, str, list[str]]] = [
    ("leader", "Who is the president of Algeria?", ["Abdelmadjid Tebboune", "Tebboune"]),
    ("leader", "Who is the prime minister of Finland?", ["Sanna Marin", "Marin"]),
    ("leader", "Who is the president of Zambia?", ["Edgar Lungu", "Lungu"]),
    ("leader", "Who is the prime minister of Poland?", ["Mateusz Morawiecki", "Morawiecki"]),
    ("leader", "Who is the king of Morocco?", ["Mohammed VI", "King Mohammed VI"]),
    ("leader", "Who is the president of France?", ["Emmanuel Macron", "Macron"]),
    ("leader", "Who is the emperor of Japan?", ["Naruhito", "Emperor Naruhito"]),
    ("leader", "Who is the vice president of Ghana?", ["Mahamudu Bawumia", "Bawumia"]),
    ("leader", "Who is the prime minister of Bangladesh?", ["Sheikh Hasina", "Hasina"]),
    ("leader", "Who is the president of Georgia?", ["Salome Zourabichvili", "Zourabichvili"]),
    ("capital", "What is the capital of Chad?", ["N'Djamena"]),
    ("capital", "What is the capital of Mongolia?", ["Ulaanbaatar"]),
    ("capital", "What is the capital city of Botswana?", ["Gaborone"]),
    ("capital", "What is the capital of Uruguay?", ["Montevideo"]),
    ("capital", "What is the capital of Estonia?", ["Tallinn"]),
    ("capital", "Which city is the capital of Senegal?", ["Dakar"]),
    ("capital", "What is the capital of Nepal?", ["Kathmandu"]),
    ("capital", "What is the capital of Jordan?", ["Amman"]),
    ("capital", "What is Iceland's capital?", ["Reykjavik"]),
    ("capital", "What is the capital of Kenya?", ["Nairobi"]),
    ("border", "How long is the border between Chile and Argentina?", ["6,691 km", "6691 km", "6691"]),
    ("border", "How long is Portugal's border with Spain?", ["1,224 km", "1224 km", "1224"]),
    ("border", "How long is the border between Mexico and the US?", ["3,155 km", "3155 km", "3155"]),
    ("border", "How long is the border of Norway with Finland?", ["709 km", "709"]),
    ("border", "How long is Cambodia's border with Vietnam?", ["1,158 km", "1158 km", "1158"]),
    ("border", "How long is the border between Egypt and Sudan?", ["1,276 km", "1276 km", "1276"]),
    ("border", "How long is the border between Ethiopia and Somalia?", ["1,640 km", "1640 km", "1640"]),
    ("border", "How long is the border between Laos and Burma?", ["238 km", "238"]),
    ("border", "How long is the border between Hungary and Romania?", ["424 km", "424"]),
    ("border", "What is the length of Peru's border with Ecuador?", ["1,529 km", "1529 km", "1529"]),
]
UNANSWERED = [
    "Who wrote the novel War and Peace?",
    "Who is the president of Narnia?",
    "What is the melting point of tungsten?",
    "Who won the football world cup in 1954?",
    "What is the capital of Australia?",
    "Who is the prime minister of Canada?",
    "How long is the river Danube?",
    "Who painted the Mona Lisa?",
    "When was the Eiffel Tower built?",
    "How many players are in a cricket team?",
]


def write_countries(data: Path, folder: Path, edition: str = "2021") -> None:
    """A Markdown file for each of COUNTRIES: "# Chad", "## Government" and so on, a paragraph a passage."""
    sections: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for passage in read_passages(data / EDITIONS[edition]):
        if passage.title in COUNTRIES:
            section, _, text = passage.text.partition(". ")
            sections[passage.title][section].append(text)
    folder.mkdir(parents=True, exist_ok=True)
    for country, own in sections.items():
        parts = [f"# {country}"]
        for section, texts in own.items():
            parts += [f"## {section}", *texts]
        (folder / f"{country.lower()}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def ask_documents(data: Path, folder: Path, checkpoint: str | None, settings: Sequence[str]) -> dict:
    """How many of QUESTIONS are answered right, how many of both are refused, and the seconds it took."""
    write_countries(data, folder)
    began = time.perf_counter()
    documents = open_documents(folder, checkpoint, *settings)
    first = documents(QUESTIONS[0][1])
    seconds = {"first": time.perf_counter() - began}
    began = time.perf_counter()
    replies = [first, *(documents(question) for _, question, _ in QUESTIONS[1:])]
    seconds["next"] = (time.perf_counter() - began) / (len(QUESTIONS) - 1)
    right = exact_match([reply.answer for reply in replies], [answers for _, _, answers in QUESTIONS])
    rows = [
        {
            "kind": kind,
            "question": question,
            "answer": reply.answer,
            "right": bool(good),
            "known": reply.known,
            "file": reply.source.file if reply.source else "",
            "probability": round(2.718281828**reply.logprob, 3),
        }
        for (kind, question, _), reply, good in zip(QUESTIONS, replies, right, strict=True)
    ]
    others = [documents(question) for question in UNANSWERED]
    rows += [
        {"kind": "none", "question": q, "answer": r.answer, "right": not r.known, "known": r.known,
         "file": r.source.file if r.source else "", "probability": round(2.718281828 ** r.logprob, 3)}
        for q, r in zip(UNANSWERED, others, strict=True)
    ]  # fmt: skip
    passages = len(documents.session.model.retriever.index)
    return {"rows": rows, "seconds": seconds, "passages": passages}


def on_government(corpus: Path, file: Path, only: str = "") -> Path:
    """The passages of a corpus that are of the section on government and hold `only`, as a corpus of their own."""
    lines = ["id\ttext\ttitle"]
    for passage in read_passages(corpus):
        if passage.text.startswith("Government.") and only in passage.text:
            text = passage.text.replace('"', '""')
            lines.append(f'{passage.id}\t"{text}"\t{passage.title}')
    with write_aside(file) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def swap_editions(
    data: Path,
    folder: Path,
    checkpoint: str | None,
    settings: Sequence[str],
    limit: int | None = None,
    everything: bool = False,
    only: str = "",
) -> tuple[list, list]:
    """The records of all questions and of those whose answer changed (`rag.evaluation.hot_swap`)."""
    opened: dict[str, Documents] = {}
    before: Path | None = None
    for edition, name in EDITIONS.items():
        index = folder / edition / "index"
        place = f"index.path={index}"
        if before is not None and not index.exists():
            shutil.copytree(before, index)  # passages that stand in both editions are embedded once
        before = index
        corpus = data / name if everything else on_government(data / name, folder / f"{edition}.tsv", only)
        opened[edition] = open_documents(corpus, checkpoint, place, *settings)
    asked = [record for _, record in read_records(data / LEADERS)][:limit]
    one = next(iter(opened.values()))
    indexes = {edition: each.session.model.retriever.index for edition, each in opened.items()}

    def cells(records: list, split: str) -> list:
        examples = {
            edition: [
                Example(record["question"], tuple(record[f"answers_{edition}"]), id=str(number))
                for number, record in enumerate(records)
            ]
            for edition in EDITIONS
        }
        return hot_swap(
            one.session.model, indexes, examples, one.choice.decoding, one.choice.n_docs, 16, split
        )

    return cells(asked, "all"), cells([record for record in asked if record["changed"]], "changed")


def show_documents(found: dict) -> None:
    console = Console(width=150)
    table = Table("kind", "question", "answer", "right", "said to know", "p(y|x)", "file")
    for row in found["rows"]:
        table.add_row(
            row["kind"],
            row["question"],
            row["answer"],
            "yes" if row["right"] else "no",
            "yes" if row["known"] else "no",
            f"{row['probability']:.3f}",
            row["file"],
        )
    console.print(table)
    asked = [row for row in found["rows"] if row["kind"] != "none"]
    for kind in ("leader", "capital", "border"):
        own = [row for row in asked if row["kind"] == kind]
        print(f"{kind}: {sum(row['right'] for row in own)} of {len(own)} right")
    right = sum(row["right"] for row in asked)
    told = sum(row["right"] and row["known"] for row in asked)
    refused = sum(not row["known"] for row in found["rows"] if row["kind"] == "none")
    print(f"all: {right} of {len(asked)} right, {told} of them said to be known")
    print(f"refused: {refused} of the {len(UNANSWERED)} that the files say nothing about")
    seconds = found["seconds"]
    print(
        f"{found['passages']:,} passages; the first answer after {seconds['first']:.1f} s, the next after "
        f"{seconds['next']:.2f} s each"
    )


def show_swap(records: list) -> None:
    for split in dict.fromkeys(record.split for record in records):
        own = [record for record in records if record.split == split]
        cells = swap_cells(own)
        table = Table(
            "asked about", *(f"{edition} indexed" for edition in EDITIONS), title=f"EM, {split} questions"
        )
        for asked, row in cells.items():
            table.add_row(
                asked,
                *(
                    f"{row[e].value:.3f} [{row[e].low:.3f}, {row[e].high:.3f}] n = {row[e].n}"
                    for e in EDITIONS
                ),
            )
        Console(width=120).print(table)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.world_leaders", description=__doc__)
    parser.add_argument("what", choices=["documents", "swap"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--output", type=Path)
    parser.add_argument("settings", nargs="*")
    given = parser.parse_args(arguments)
    quieten()
    with mistakes_in_one_sentence(), tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "countries"
        if given.what == "documents":
            found = ask_documents(given.data, folder, given.checkpoint, given.settings)
            show_documents(found)
            if given.output:
                given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False))
        else:
            which = given.limit, given.everything, given.only
            every, changed = swap_editions(given.data, folder, given.checkpoint, given.settings, *which)
            show_swap([*every, *changed])


if __name__ == "__main__":
    main(sys.argv[1:])
