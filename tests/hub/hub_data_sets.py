"""The data sets that the tasks and configs name, tiny, as Parquet with the hub's columns; wiki_dpr with FAISS files."""

import random
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import ANSWERS, PASSAGES, QUESTIONS, SENTENCES
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import DPRContextEncoder


def wiki_dpr(folder: Path, encoder: DPRContextEncoder, vocabulary: list[str]) -> None:
    """Passages with their vectors in Parquet, and FAISS files over all of them, by inner product."""
    tokenizer = BertWordPieceTokenizer(vocab={token: n for n, token in enumerate(vocabulary)}, lowercase=True)
    rows, vectors, draw = [], [], random.Random(3)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    for number in range(280):
        title, text = PASSAGES[number % len(PASSAGES)]
        if number >= len(PASSAGES):
            title, text = draw.choice(words), " ".join(draw.choices(words, k=15))
        ids = tokenizer.encode(title, text)
        with torch.inference_mode():
            vector = encoder(
                input_ids=torch.tensor([ids.ids]),
                attention_mask=torch.tensor([ids.attention_mask]),
                token_type_ids=torch.tensor([ids.type_ids]),
            ).pooler_output[0]
        vectors.append(vector.numpy())
        rows.append({"id": str(number + 1), "text": text, "title": title, "embeddings": vectors[-1].tolist()})
    data = folder / "data/psgs_w100/nq"
    data.mkdir(parents=True)
    fields = [("id", pa.string()), ("text", pa.string()), ("title", pa.string())]
    schema = pa.schema([*fields, ("embeddings", pa.list_(pa.float32()))])
    for part in range(2):
        table = pa.Table.from_pylist(rows[part * 140 : part * 140 + 140], schema)
        pq.write_table(table, data / f"train-{part:05d}-of-00002.parquet", row_group_size=100)
    (folder / "index").mkdir()
    matrix = np.stack(vectors)
    for factory, name in (("HNSW16,SQ8", "HNSW128_SQ8"), ("IVF4,PQ4x4", "IVF4096_HNSW128_PQ128")):
        index = faiss.index_factory(matrix.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(matrix)
        index.add(matrix)
        faiss.write_index(index, str(folder / "index" / f"psgs_w100.nq.{name}-IP-train.faiss"))
    card(folder, {"psgs_w100.nq.exact": {"train": "data/psgs_w100/nq/*"}})


def questions(root: Path) -> None:
    pairs = list(zip(QUESTIONS, ANSWERS, strict=True)) * 2
    nq = [{"question": question, "answer": [answer]} for question, answer in pairs]
    data_set(root / "google-research-datasets/nq_open", "nq_open", {"train": nq, "validation": nq[:3]})
    web = [{"url": f"http://a/{n}", "question": q, "answers": [a]} for n, (q, a) in enumerate(pairs)]
    data_set(root / "stanfordnlp/web_questions", "default", {"train": web, "test": web[:3]}, "data")
    trivia = [
        {
            "question": question,
            "question_id": f"tc_{number}",
            "question_source": "http://www.triviacountry.com/",
            "entity_pages": {name: [] for name in ("doc_source", "filename", "title", "wiki_context")},
            "search_results": {name: [] for name in ("description", "filename", "title", "url")},
            "answer": {
                "aliases": [answer],
                "normalized_aliases": [answer.lower()],
                "matched_wiki_entity_name": "",
                "normalized_matched_wiki_entity_name": "",
                "normalized_value": answer.lower(),
                "type": "WikipediaEntity",
                "value": answer,
            },
        }
        for number, (question, answer) in enumerate(pairs)
    ]
    splits = {"train": trivia, "validation": trivia[:3], "test": trivia[:2]}
    configs = ["unfiltered.nocontext", "rc.wikipedia.nocontext"]
    for config in configs:
        data_set(root / "mandarjoshi/trivia_qa", config, splits)
    card(
        root / "mandarjoshi/trivia_qa",
        {config: {split: f"{config}/{split}-*" for split in splits} for config in configs},
    )
    marco = [
        {
            "answers": [answer],
            "passages": {"is_selected": [1], "passage_text": [question], "url": ["http://a"]},
            "query": question,
            "query_id": number,
            "query_type": "ENTITY",
            "wellFormedAnswers": [f"It is {answer}."] if number % 2 == 0 else [],
        }
        for number, (question, answer) in enumerate(pairs)
    ]
    data_set(root / "microsoft/ms_marco", "v2.1", {"train": marco, "validation": marco[:3]})


def data_set(folder: Path, config: str, splits: dict[str, list[dict]], under: str | None = None) -> None:
    under = under or config
    (folder / under).mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / under / f"{split}-00000-of-00001.parquet")
    card(folder, {config: {split: f"{under}/{split}-*" for split in splits}})


def card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """README.md, whose head tells `datasets` which files belong to which configuration and split."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, pattern in splits.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
