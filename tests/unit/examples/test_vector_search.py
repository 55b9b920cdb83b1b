"""The vector search: texts, vectors, ever better lists, and each list an update."""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest

from examples.vector_search.__main__ import draw
from examples.vector_search.corpus import MAX_WORDS, Text, beginning, read_corpus, texts_in
from examples.vector_search.embedding import Vectors, fitted
from examples.vector_search.index import Index, build, recall
from examples.vector_search.questions import Question, questions
from examples.vector_search.steps import recall_table, run
from examples.vector_search.ways import Refinement, Searching, Way, ends_at_s, refinements, sent_in
from tests.fake_router import FakeRouter

VOCABULARY = 4096
NOW = Searching(seconds=0.0)


def encode(texts: Sequence[str]) -> list[list[int]]:
    """Words as numbers, in place of a tokenizer."""
    words = (re.findall(r"\w+", text.lower()) for text in texts)
    return [[crc32(word.encode()) % VOCABULARY for word in each] for each in words]


def a_table() -> Vectors:
    """Random directions, in place of a model's embeddings."""
    return np.random.default_rng(0).standard_normal((VOCABULARY, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def index() -> Index:
    """A tenth of the texts."""
    return build(read_corpus(1000), encode, a_table())


def test_public_functions_and_classes_with_a_docstring_are_texts() -> None:
    words = "does one thing and then another thing until all of it is done"
    source = f'''
class A:
    """Class {words}."""
    def b(self):
        """Method {words}."""
    def _hidden(self):
        """Hidden {words}."""
def short():
    """Too short."""
'''
    assert [text.name for text in texts_in(source, "m")] == ["m.A", "m.A.b"]
    assert not list(texts_in("def {{ name }}():", "template"))


def test_a_long_docstring_is_cut_at_a_line() -> None:
    docstring = "\n".join(["ten words " * 5] * 20)
    assert len(beginning(docstring).split()) == MAX_WORDS
    assert beginning("one\ntwo") == "one\ntwo"


def test_the_corpus_has_as_many_texts_as_asked_for_and_no_name_twice(index: Index) -> None:
    assert len({text.name for text in index.texts}) == 1000


def test_rare_words_weigh_more_and_vectors_have_length_one() -> None:
    texts = ["the the the cat", "the the the dog", "the bird", "a the cat"]
    embedder = fitted(encode, a_table(), texts)
    (the, cat, bird), *_ = encode(["the cat bird"])
    assert embedder.weights[the] < embedder.weights[cat] < embedder.weights[bird]
    assert np.allclose(np.linalg.norm(embedder.vectors(texts), axis=1), 1)


def test_more_probes_find_more_of_the_nearest(index: Index) -> None:
    asked = questions(index.texts, 30)
    by_question = [refinements(index, each, Searching()) for each in asked]
    recalls = [
        sum(each.recall for each in stage) / len(asked) for stage in zip(*by_question, strict=True)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.8 < recalls[-1]
    vector = index.embedder.vectors([asked[0].sentence])
    assert set(index.search(vector, index.num_lists, 5)) == set(index.exact(vector, 5))
    last = [each[-1] for each in by_question]
    assert {each.at_s for each in last} == {3.0}
    assert sum(q.wanted in each.found for q, each in zip(asked, last, strict=True)) > len(asked) / 2


def test_a_question_does_not_give_its_answer_away(index: Index) -> None:
    asked = questions(index.texts, 50)
    assert asked == questions(index.texts, 50)
    assert asked != questions(index.texts, 50, seed=1)
    for each in asked:
        text = index.texts[each.wanted]
        assert each.sentence in " ".join(text.docstring.split())
        assert not each.is_answered_by(each.prompt)
        assert each.is_answered_by(f"It is `{text.name}`.")
    assert not Question("Does it.", 0, "join").is_answered_by("rejoin, joined")


def test_each_way_sends_its_lists_and_ends_when_it_knows_no_more() -> None:
    refined = tuple(
        Refinement(at_s, probes, found, 0.5)
        for at_s, probes, found in [(1.0, 1, (4, 5)), (2.0, 2, (4, 5)), (4.0, 4, (5, 6))]
    )
    sent = {way: [each.at_s for each in sent_in(way, refined)] for way in Way}
    assert sent == {Way.WAIT: [4.0], Way.STREAM: [1.0, 4.0], Way.FIRST: [1.0], Way.NONE: []}
    ends = {way: ends_at_s(way, refined) for way in Way}
    assert ends == {Way.WAIT: 4.0, Way.STREAM: 4.0, Way.FIRST: 1.0, Way.NONE: 0.0}


def test_recall_counts_what_is_wanted() -> None:
    assert recall([1, 2, 3], [3, 4]) == 0.5


async def test_each_new_list_is_an_update(router: FakeRouter, index: Index) -> None:
    lines: list[str] = []
    results = await run(router.address, index, 4, list(Way), NOW, lines.append)
    assert len(results) == len(router.conversations) == 16
    for asked, conversation in zip(results, router.conversations, strict=True):
        kinds = [request.WhichOneof("event") for request in conversation.received]
        lists = sent_in(asked.way, refinements(index, asked.question, NOW))
        assert kinds == ["open", *["update"] * len(lists), "seal"]
        if lists:
            last = conversation.received[-2].update.documents
            assert [each.id for each in last] == [index.texts[n].name for n in lists[-1].found]
    assert recall_table(index, questions(index.texts, 4), NOW) == lines[0]
    assert "| streaming |" in lines[-1]
    assert "| first results only |" in lines[-1]


async def test_the_figure_has_a_point_a_way(router: FakeRouter, index: Index) -> None:
    results = await run(router.address, index, 1, list(Way), NOW, lambda _: None)
    (axes,) = draw(results).figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(Way)


def test_a_text_stands_under_its_name() -> None:
    assert Text("a.b", "Does.").content == "# `a.b`\nDoes.\n\n"
