"""The built-in world: what other code relies on when it reads the mini-wiki's files."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from rag.miniwiki import names, sentences
from rag.miniwiki.__main__ import main
from rag.miniwiki.world import make_world, words_of, write_world

SMALL = {"people": 150, "institutions": 40}
FILES = [
    "edition_a.tsv",
    "edition_b.tsv",
    "train.jsonl",
    "dev.jsonl",
    "test.jsonl",
    "hotswap.jsonl",
    "dpr.jsonl",
]


class Files:
    """The files of a world, read back as a stranger would read them."""

    def __init__(self, folder):
        self.folder = folder
        self.a, self.b = self.passages("edition_a.tsv"), self.passages("edition_b.tsv")
        self.train, self.dev, self.test, self.hotswap, self.dpr = (
            self.questions(f"{name}.jsonl") for name in ("train", "dev", "test", "hotswap", "dpr")
        )

    def passages(self, file):
        with open(self.folder / file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        assert list(rows[0]) == ["id", "text", "title"]
        assert [row["id"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
        return {row["id"]: (row["title"], row["text"]) for row in rows}

    def questions(self, file):
        return [json.loads(line) for line in (self.folder / file).read_text(encoding="utf-8").splitlines()]

    def asked(self):
        """All questions that have one list of answers."""
        return self.train + self.dev + self.test


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The default world, written by the command itself: in here the type checks of tests slow it down."""
    folder = tmp_path_factory.mktemp("miniwiki")
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-m", "rag.miniwiki", f"output={folder}"], cwd=root, check=True)
    return Files(folder)


def states(text, answer):
    """Whether `answer` stands in `text` as whole words."""
    return re.search(rf"\b{re.escape(answer)}\b", text) is not None


def test_same_seed_same_bytes(tmp_path):
    first = write_world(tmp_path / "first", seed=7, **SMALL)
    again = write_world(tmp_path / "again", seed=7, **SMALL)
    other = write_world(tmp_path / "other", seed=8, **SMALL)
    assert first == again
    assert list(first["sha256"]) == FILES
    for file in FILES:
        data = (tmp_path / "again" / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == first["sha256"][file]
        assert first["sha256"][file] != other["sha256"][file]
    assert json.loads((tmp_path / "first" / "world.json").read_text()) == first


def test_every_machine_writes_the_same_world(tmp_path):
    """Pinned: it changes only when names or sentences are edited, never with Python or the machine."""
    summary = write_world(tmp_path, seed=7, **SMALL)
    digest = hashlib.sha256("".join(summary["sha256"].values()).encode()).hexdigest()
    assert digest[:16] == "663c0c930d2c70ff"


def test_sizes_of_the_default_world(world):
    about = Counter(question["set"] for question in world.train)
    assert about == {"people": 6000, "institutions": 1260}
    assert len(world.test) == 500
    assert len({question["subject"] for question in world.test}) == 250
    assert Counter(q["set"] for q in world.dev) == {"people": 240, "institutions": 60}
    assert len(world.hotswap) == 210
    assert {question["relation"] for question in world.dpr} == {"birthplace", "employer", "instrument"}
    assert 9000 <= len(world.a) <= 10000
    vocabulary = {word for title, text in world.a.values() for word in words_of(f"{title} {text}")}
    vocabulary |= {word for question in world.asked() for word in words_of(question["question"])}
    assert len(vocabulary) < 2200


def test_summary_counts_what_is_in_the_files(world):
    counts = json.loads((world.folder / "world.json").read_text())["counts"]
    assert counts["passages"] == len(world.a)
    for file in ("train", "dev", "test", "hotswap", "dpr"):
        assert counts[f"{file} questions"] == len(getattr(world, file))


def test_passages_are_short_and_written_with_care(world):
    lengths = [len(text.split()) for _, text in world.a.values()]
    assert min(lengths) >= 23 and max(lengths) <= 55
    assert 35 <= sum(lengths) / len(lengths) <= 42
    for _, text in world.a.values():
        assert "{" not in text and "  " not in text and text.endswith(".")
        for sentence in text.rstrip(".").split(". "):
            assert sentence[0].isupper() or sentence[0].isdigit(), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n (?!hour\b)[^aeiouAEIOU]", text), text
        assert not re.search(r"\b(on|to|by|of|with|taught|took|chose|admitted) (she|he)\b", text), text
        assert not re.search(r"[^\w\s.,]|\d[a-z]|[^\x00-\x7f]", text), text


def test_a_passage_begins_with_its_subject(world):
    """The first sentence names the subject in full: the passage can be read alone."""
    for title, text in world.a.values():
        assert title.lower() in text.split(". ")[0].lower()


def test_nobody_is_asked_about_in_two_splits(world):
    def subjects(questions):
        return {question["subject"] for question in questions}

    splits = [subjects(part) for part in (world.train, world.dev, world.test, world.hotswap)]
    for one, other in combinations(splits, 2):
        assert not one & other
    assert all(question["set"] == "people" for question in world.test)
    assert subjects(world.dpr) <= splits[0]


def test_positive_passage_states_the_answer(world):
    for question in world.asked():
        (number,), (answer,) = question["positive_ids"], question["answers"]
        title, text = world.a[number]
        assert title == question["subject"]
        assert states(text, answer)
        assert len(answer.split()) <= 3
        assert states(question["question"].lower(), title.lower())


def test_a_persons_answer_stands_in_one_passage_of_theirs(world):
    passages = {}
    for number, (title, text) in world.a.items():
        passages.setdefault(title, {})[number] = text
    for question in world.asked():
        if question["set"] == "people":
            text_of = passages[question["subject"]]
            assert len(text_of) in (2, 3)
            numbers = [number for number, text in text_of.items() if states(text, question["answers"][0])]
            assert numbers == question["positive_ids"]
            assert text_of[numbers[0]].count(question["answers"][0]) == 1


def test_no_fact_of_a_person_answers_two_relations():
    for person in make_world(1, **SMALL).people:
        assert len(set(person.answers.values())) == len(person.answers)


def test_editions_differ_in_heads_alone(world):
    assert {n: title for n, (title, _) in world.a.items()} == {n: title for n, (title, _) in world.b.items()}
    differing = {number for number in world.a if world.a[number] != world.b[number]}
    assert len(differing) == 700
    for question in world.hotswap:
        (number,), (in_a,), (in_b,) = question["positive_ids"], question["answers_a"], question["answers_b"]
        assert number in differing
        (_, a), (_, b) = world.a[number], world.b[number]
        assert in_a != in_b
        assert states(a, in_a) and not states(a, in_b)
        assert states(b, in_b) and not states(b, in_a)
        hidden = [re.sub(r"\b\d{4}\b", "", text) for text in (a.replace(in_a, ""), b.replace(in_b, ""))]
        assert hidden[0] == hidden[1]


def test_names_are_unique():
    world = make_world(1, **SMALL)
    full = [person.name for person in world.people]
    full += [person.answers["spouse"] for person in world.people if "spouse" in person.answers]
    full += [head for institution in world.institutions for head in (institution.head_a, institution.head_b)]
    assert len(set(full)) == len(full)
    assert {len(name.split()) for name in full} == {2}
    slots = [(entry.title, entry.part) for entry in world.entries]
    assert len(set(slots)) == len(slots)


def test_a_heads_name_stands_in_one_passage(world):
    passages = Counter(
        name
        for _, text in world.a.values()
        for name in set(re.findall(r"(?=\b([A-Z][a-z]+ [A-Z][a-z]+)\b)", text))
    )
    assert all(passages[question["answers_a"][0]] == 1 for question in world.hotswap)


def test_training_has_met_every_word_of_the_names(world):
    met = {word for q in world.train for word in f"{q['subject']} {q['answers'][0]}".split()}
    for question in world.test + world.dev:
        assert set(f"{question['subject']} {question['answers'][0]}".split()) <= met
    for question in world.hotswap:
        assert (
            set(" ".join([question["subject"], *question["answers_a"], *question["answers_b"]]).split())
            <= met
        )


def test_a_word_of_a_name_means_nothing_else(world):
    """Lower-cased, a given name, surname or city is not also an ordinary word, and is in one list only."""
    lists = [names.WOMEN, names.MEN, names.SURNAMES, names.CITIES]
    words = [word for one in lists for word in one]
    assert len(set(words)) == len(words)
    ordinary = {word for _, text in world.a.values() for word in re.findall(r"\b[a-z]+\b", text)}
    assert not ordinary & {word.lower() for word in words}
    others = names.TRADES + names.FIELDS + names.INSTRUMENTS + names.LANGUAGES + names.SPORTS
    others += names.COMPANIES + names.PRIZES
    assert len({word.lower() for word in others}) == len(others)


def test_questions_are_not_worded_as_passages():
    for relation, questions in sentences.PEOPLE_QUESTIONS.items():
        wordings = sentences.PEOPLE_SENTENCES[relation]
        assert len(set(questions)) == len(questions) >= 3
        assert len(set(wordings)) == len(wordings) >= 3
        for question in questions:
            assert question not in wordings
            assert question.endswith("?")


def test_always_giving_the_commonest_answer_fails(world):
    answers = {}
    for question in world.train:
        answers.setdefault(question["relation"], Counter())[question["answers"][0]] += 1
    right = sum(
        answers[question["relation"]].most_common(1)[0][0] in question["answers"] for question in world.test
    )
    assert right / len(world.test) < 0.02


def test_hard_negatives_are_near_and_wrong(world):
    for question in world.dpr:
        negatives = question["hard_negative_ids"]
        assert 1 <= len(negatives) == len(set(negatives)) <= 6
        words_of_name = set(question["subject"].split())
        for number in negatives:
            title, _ = world.a[number]
            assert number not in question["positive_ids"]
            assert words_of_name & set(title.split())


def test_quotes_are_doubled_and_lines_end_alike(world):
    data = (world.folder / "edition_a.tsv").read_bytes()
    assert b"\r" not in data and data.endswith(b"\n")
    assert data.splitlines()[1].count(b'"') == 2


def test_command(tmp_path, capsys):
    folder = tmp_path / "wiki"
    assert main([f"output={folder}", "seed=3", "people=150", "institutions=40"]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.splitlines()[0] == f"Writing a mini-wiki of 150 people and 40 institutions (seed 3) to {folder}"
    )
    assert "train questions" in shown
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "world.json"])


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("sede=2", "did you mean seed=…? The keys are output=, seed=, people=, institutions="),
        ("people", "The keys are"),
        ("people=many", "must be a whole number"),
        ("people=3", "choose from 120 to 50000"),
        ("institutions=5000", "choose from 40 to 1000"),
        (f"output={__file__}", "is a file, but a folder is written"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, argument, part):
    assert main([f"output={tmp_path / 'wiki'}", argument]) == 2
    told = capsys.readouterr().err
    assert part in told and told.count("\n") == 1
    assert not (tmp_path / "wiki").exists()
