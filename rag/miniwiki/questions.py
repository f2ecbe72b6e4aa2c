"""What is asked about the world, and the split of its people and institutions over train, dev, test and hot-swap."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rag.miniwiki import sentences
from rag.miniwiki.dice import Dice
from rag.miniwiki.entries import Institution, Person

FACTS_PER_PERSON = 5  # questions about a training person
# A passage may hold two cities or two years, and only some people have a private life: these relations would be
# practised too little otherwise. Dev and test questions are drawn evenly.
TRAINING_WEIGHTS: dict[str, int] = dict.fromkeys(
    ("birthplace", "retirement", "spouse", "sport", "language", "instrument"), 2
)
TEST_QUESTIONS_PER_PERSON = 2
HEAD_WORDINGS = 3  # questions about a training institution

# The first retriever learns from questions of these relations alone, one a kind of passage. It learns to find
# the person; which passage holds the other ten relations is left to training end to end.
DPR_RELATIONS = ("birthplace", "employer", "instrument")


@dataclass(frozen=True)
class Question:
    """A question, its answers in both editions and the passage (title, part) that answers it."""

    text: str
    answer: str
    where: tuple[str, str]
    relation: str
    subject: str
    group: str
    answer_b: str | None = None


def ask(
    all_people: list[Person], all_institutions: list[Institution], split: Dice, dice: Dice
) -> dict[str, list[Question]]:
    """Split people and institutions, and ask about them: the questions of each file.

    Everybody asked about in dev, test and hot-swap has only words in name and answers that training has met,
    elsewhere: what is new is their combination.
    """
    people, institutions = split.shuffled(all_people), split.shuffled(all_institutions)
    train_people, other_people = cut(people, len(people) * 2 // 5)
    train_institutions, other_institutions = cut(institutions, len(institutions) * 3 // 5)

    train = [question for person in train_people for question in ask_training_person(dice, person)]
    for institution in train_institutions:
        train += ask_institution(dice, institution, HEAD_WORDINGS)
    met = {word for question in train for word in f"{question.subject} {question.answer}".split()}

    def is_met(question: Question) -> bool:
        words = f"{question.subject} {question.answer} {question.answer_b or ''}".split()
        return all(word in met for word in words)

    def take(candidates: Iterable[list[Question]], count: int) -> list[Question]:
        taken: list[Question] = []
        for questions in candidates:
            if all(map(is_met, questions)):
                taken += questions
                count -= 1
            if count == 0:
                break
        return taken

    def ask_person(person: Person) -> list[Question]:
        relations = dice.some(list(person.answers), TEST_QUESTIONS_PER_PERSON)
        return [ask_about(dice, person, relation) for relation in relations]

    test = take(map(ask_person, other_people), len(people) // 12)
    asked = {question.subject for question in test}
    rest = [person for person in other_people if person.name not in asked]
    dev = take(map(ask_person, rest), len(people) // 25)
    hotswap_count = len(institutions) * 3 // 10
    hotswap = take((ask_institution(dice, i, 1) for i in other_institutions), hotswap_count)
    used = {question.subject for question in hotswap}
    left = [institution for institution in other_institutions if institution.title not in used]
    dev += take((ask_institution(dice, i, 2) for i in left), max(4, len(institutions) * 3 // 70))

    return {
        "train": split.shuffled(train),
        "dev": dev,
        "test": test,
        "hotswap": hotswap,
        "dpr": [question for question in train if question.relation in DPR_RELATIONS],
    }


def cut(items: list[Any], count: int) -> tuple[list[Any], list[Any]]:
    """The first `count` items and the others."""
    return items[:count], items[count:]


def ask_about(dice: Dice, person: Person, relation: str, wording: str | None = None) -> Question:
    """One question about a fact of a person's, in a rolled wording."""
    wording = wording or dice.pick(sentences.PEOPLE_QUESTIONS[relation])
    text = sentences.fill(wording, {"name": person.name, "wife": "husband" if person.is_woman else "wife"})
    part = next(part for part, relations in person.passages.items() if relation in relations)
    return Question(text, person.answers[relation], (person.name, part), relation, person.name, "people")


def ask_training_person(dice: Dice, person: Person) -> list[Question]:
    """Five questions, each about another relation, the harder ones more often."""
    pool = [relation for relation in person.answers for _ in range(TRAINING_WEIGHTS.get(relation, 1))]
    chosen: dict[str, None] = {}
    while len(chosen) < min(FACTS_PER_PERSON, len(person.answers)):
        chosen[dice.pick(pool)] = None
    return [ask_about(dice, person, relation) for relation in chosen]


def ask_institution(dice: Dice, institution: Institution, count: int) -> list[Question]:
    """Ask who heads an institution, in `count` different wordings."""
    kind = sentences.KINDS[institution.kind]
    slots = {"title": institution.title, "office": kind["office"]}
    return [
        Question(
            sentences.fill(wording, slots),
            institution.head_a,
            (institution.title, "leadership"),
            "head",
            institution.title,
            "institutions",
            institution.head_b,
        )
        for wording in dice.some([kind["question"], *sentences.HEAD_QUESTIONS], count)
    ]
