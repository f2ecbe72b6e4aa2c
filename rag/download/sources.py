"""Where the data of the tasks and corpora are, under which licence, and where the configs look for them.

The addresses are those of DPR's download_data.py, of the data sets' own pages and of ParlAI's and `datasets`' builders,
from which the sizes and SHA-256 are as well; DPR states neither.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rag.download.fetch import Remote

DPR = "https://dl.fbaipublicfiles.com/dpr"
MARCO = ("https://msmarco.z22.web.core.windows.net/msmarco", "https://msmarco.blob.core.windows.net/msmarco")
FEVER = "https://fever.ai/download/fever"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


@dataclass(frozen=True)
class Archive:
    """An archive of which some files are kept: {name inside: path below the data folder}; it goes afterwards."""

    remote: Remote
    path: str
    members: dict[str, str]
    unpacked: int  # bytes of these files, roughly


@dataclass(frozen=True)
class HubFiles:
    """The files of a hub data set whose paths begin and end so, at the same paths below `folder`."""

    repo: str
    begin: str
    end: str
    folder: str


@dataclass(frozen=True)
class Source:
    """What `python -m rag.download NAME` fetches."""

    what: str
    licence: str
    files: dict[str, Remote] = field(default_factory=dict)  # path below the data folder → where from
    archive: Archive | None = None
    hub: HubFiles | None = None
    make: Callable[[Path, Path], list[Path]] | None = (
        None  # from the hub's files, into a folder: what it made
    )
    made: str = ""  # that folder, below the data folder
    also: tuple[str, ...] = ()  # other names of it


def _dpr(*names: str) -> dict[str, Remote]:
    return {f"dpr/{name}": Remote((f"{DPR}/data/retriever/{name}",)) for name in names}


def _marco(name: str, size: int, sha256: str) -> dict[str, Remote]:
    return {f"msmarco/{name}": Remote(tuple(f"{server}/{name}" for server in MARCO), size, sha256)}


def _fever(name: str, size: int, sha256: str) -> dict[str, Remote]:
    return {f"fever/{name}": Remote((f"{FEVER}/{name}",), size, sha256)}


def _squad(fetched: Path, folder: Path) -> list[Path]:
    from rag.download.squad import open_domain  # with pyarrow, which --help does not wait for

    return open_domain(fetched, folder)


SOURCES = {
    "nq": Source(
        "Natural Questions in DPR's split, questions and answers",
        f"CC BY-SA 3.0 ({DPR}/nq_license/LICENSE)",
        _dpr("nq-train.qa.csv", "nq-dev.qa.csv", "nq-test.qa.csv"),
        also=("natural_questions",),
    ),
    "dpr_nq": Source(
        "DPR's training files for Natural Questions, with passages (experiment=dpr/nq)",
        f"CC BY-NC 4.0, the questions CC BY-SA 3.0 ({DPR}/nq_license/LICENSE)",
        _dpr("biencoder-nq-train.json.gz", "biencoder-nq-dev.json.gz"),
    ),
    "trivia_qa": Source(
        "TriviaQA in DPR's open-domain split, questions and answers",
        "the questions' copyright stays with their authors: nothing of them may be passed on",
        _dpr("trivia-train.qa.csv.gz", "trivia-dev.qa.csv.gz", "trivia-test.qa.csv.gz"),
    ),
    "trivia_qa_wikipedia": Source(
        "TriviaQA's Wikipedia dev and test sets, two files of an archive of 2.7 GB",
        "the questions' copyright stays with their authors: nothing of them may be passed on",
        archive=Archive(
            Remote(
                (
                    "https://nlp.cs.washington.edu/triviaqa/data/triviaqa-rc.tar.gz",
                    "http://nlp.cs.washington.edu/triviaqa/data/triviaqa-rc.tar.gz",
                ),
                2_665_779_500,
                "ef94fac6db0541e5bb5b27020d067a8b13b1c1ffc52717e836832e02aaed87b9",
            ),
            "triviaqa/triviaqa-rc.tar.gz",
            {
                f"qa/{name}": f"triviaqa/{name}"
                for name in ("wikipedia-dev.json", "wikipedia-test-without-answers.json")
            },
            200_000_000,
        ),
    ),
    "web_questions": Source(
        "WebQuestions in DPR's split: its training files, and the questions and answers of test",
        "CC BY 4.0, DPR's passages and negatives CC BY-NC 4.0",
        _dpr(
            "biencoder-webquestions-train.json.gz",
            "biencoder-webquestions-dev.json.gz",
            "webquestions-test.qa.csv",
        ),
    ),
    "curated_trec": Source(
        "CuratedTREC in DPR's split: its training files, and the questions and answers of test",
        "none is stated for the questions, DPR's passages and negatives CC BY-NC 4.0",
        _dpr(
            "biencoder-curatedtrec-train.json.gz",
            "biencoder-curatedtrec-dev.json.gz",
            "curatedtrec-test.qa.csv",
        ),
    ),
    "ms_marco": Source(
        "MS-MARCO 2.1, with the questions of NLG",
        "for non-commercial research only (https://microsoft.github.io/msmarco)",
        _marco(
            "train_v2.1.json.gz",
            1_112_116_929,
            "e91745411ca81e441a3bb75deb71ce000dc2fc31334085b7d499982f14218fe2",
        )
        | _marco(
            "dev_v2.1.json.gz",
            138_303_699,
            "5b3c9c20d1808ee199a930941b0d96f79e397e9234f77a1496890b138df7cb3c",
        )
        | _marco(
            "eval_v2.1_public.json.gz",
            133_851_237,
            "05ac0e448450d507e7ff8e37f48a41cc2d015f5bd2c7974d2445f00a53625db6",
        ),
    ),
    "jeopardy": Source(
        "SearchQA's Jeopardy clues, three archives in one of 3.1 GB",
        "none is stated; the clues belong to the show (https://github.com/nyu-dl/dl4ir-searchQA)",
        archive=Archive(
            Remote(
                (f"{DRIVE}1aHPVfC5TrlnUjehtagVZoDfq4VccgaNT",),
                3_148_550_732,
                "1f547df8b00e919ba692ca8c133462d358a89ee6b15a8c65c40efe006ed6c4eb",
            ),
            "searchqa/SearchQA.zip",
            {f"data_json/{split}.zip": f"searchqa/{split}.zip" for split in ("train", "val", "test")},
            3_200_000_000,
        ),
        also=("searchqa",),
    ),
    "fever": Source(
        "FEVER's claims with the labels and evidence of all three sets",
        "CC BY-SA 3.0",
        _fever("train.jsonl", 33_024_303, "eba7e8f87076753f8494718b9a857827af7bf73e76c9e4b75420207d26e588b6")
        | _fever(
            "paper_dev.jsonl", 2_168_767, "41158707810008747946bf23471e82df53e77a513524b9e3ec1c2e674ef5ef8c"
        )
        | _fever(
            "paper_test.jsonl", 2_181_168, "fb7b0280a0adc2302bbb29bfb7af37274fa585de3171bcf908f180642d11d88e"
        ),
        also=("fever2", "fever3"),
    ),
    "dialogue": Source(
        "Wizard of Wikipedia (task=dialogue; not in the paper)",
        "see https://parl.ai/projects/wizard_of_wikipedia; its sentences of Wikipedia are CC BY-SA",
        archive=Archive(
            Remote(
                (
                    "https://parl.ai/downloads/wizard_of_wikipedia/wizard_of_wikipedia.tgz",
                    "http://parl.ai/downloads/wizard_of_wikipedia/wizard_of_wikipedia.tgz",
                ),
                None,
                "2a549627a83fea745efa2076a41d1c0078ad002ab2b54eae6a4e3d3d66ae24b7",
            ),
            "wizard_of_wikipedia/wizard_of_wikipedia.tgz",
            {
                f"{name}.json": f"wizard_of_wikipedia/{name}.json"
                for name in ("train", "valid_random_split", "test_random_split")
            },
            600_000_000,
        ),
        also=("wizard_of_wikipedia",),
    ),
    "squad": Source(
        "SQuAD 1.1 as open-domain questions over its own paragraphs (python -m rag.wiki)",
        "CC BY-SA 4.0",
        hub=HubFiles("rajpurkar/squad", "plain_text/", ".parquet", "squad"),
        make=_squad,
        made="wiki",
    ),
    "psgs_w100": Source(
        "English Wikipedia of December 2018 in 21,015,324 passages (corpus=wikipedia)",
        "CC BY-SA 3.0",
        {
            "psgs_w100.tsv.gz": Remote(
                (f"{DPR}/wikipedia_split/psgs_w100.tsv.gz",),
                4_694_541_059,
                "c39b020c855a2b5c25ffef3abe4a3b6f9b829ad7dbc14ec3d163d34d7c53ea8d",
            )
        },
        also=("wikipedia",),
    ),
    "wiki_dpr": Source(
        "21,015,300 of these passages with the vectors of DPR's encoder, 85 GB of Parquet (corpus=wiki_dpr)",
        "CC BY-NC 4.0, the passages CC BY-SA 3.0",
        hub=HubFiles("facebook/wiki_dpr", "data/psgs_w100/nq/", ".parquet", "wiki_dpr"),
    ),
    "wiki_dpr_hnsw_sq8": Source(
        "the FAISS index of wiki_dpr, HNSW, 38 GB (index=wiki_dpr_hnsw_sq8)",
        "CC BY-NC 4.0",
        hub=HubFiles("facebook/wiki_dpr", "index/psgs_w100.nq.HNSW128_SQ8", ".faiss", "wiki_dpr"),
    ),
    "wiki_dpr_ivf_pq": Source(
        "the FAISS index of wiki_dpr, compressed, 2.9 GB (index=wiki_dpr_ivf_pq)",
        "CC BY-NC 4.0",
        hub=HubFiles("facebook/wiki_dpr", "index/psgs_w100.nq.IVF4096_HNSW128_PQ128", ".faiss", "wiki_dpr"),
    ),
}

# What is not there to be fetched, and why.
NOT_PUBLIC = {
    "world_leaders": "the paper's list of 82 heads of state is not public; what one's own looks like is said in "
    "configs/experiment/hotswap/nq_rag_sequence.yaml",
}
