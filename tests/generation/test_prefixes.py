"""The trie of shared segments, against a count of prefixes one by one."""

import random

from cai_jax.generation.prefixes import NO_NODE, build_trie, distinct_tokens


def path(trie, texts, number):
    """The tokens of a text, as its nodes and what follows them spell it."""
    spelled, node = [], trie.parents[number]
    while node != NO_NODE:
        parent, start, end, text, depth = trie.nodes[node]
        assert depth == (0 if parent == NO_NODE else trie.nodes[parent].depth + 1)
        assert start == (0 if parent == NO_NODE else trie.nodes[parent].end) < end
        spelled = [*texts[text][start:end], *spelled]
        node = parent
    return [*spelled, *texts[number][trie.start(number) :]]


def forwarded(trie, texts):
    nodes = sum(node.end - node.start for node in trie.nodes)
    return nodes + sum(len(text) - trie.start(number) for number, text in enumerate(texts))


def random_texts(rng):
    """Texts that grow out of one another, over two tokens, so that they share by chance too."""
    texts = [[]]
    for _ in range(rng.randint(1, 30)):
        base = rng.choice(texts)
        base = base[: rng.randint(0, len(base))] if rng.random() < 0.3 else base
        texts.append(base + rng.choices([5, 70_000], k=rng.choice([0, 0, 1, 3, 9])))
    rng.shuffle(texts)
    return texts


def test_every_text_is_spelled_by_its_nodes_and_each_prefix_is_there_once():
    rng = random.Random(0)
    for _ in range(300):
        texts = random_texts(rng)
        prefixes = {tuple(text[: i + 1]) for text in texts for i in range(len(text))}
        assert distinct_tokens(texts) == len(prefixes)
        trie = build_trie(texts, least=1, worth=0)
        assert [path(trie, texts, n) for n in range(len(texts))] == texts
        assert forwarded(trie, texts) == len(prefixes)


def test_short_shares_are_left_and_equal_texts_share_all():
    rng = random.Random(1)
    for _ in range(300):
        texts = random_texts(rng)
        trie = build_trie(texts, least=4, worth=0)
        assert [path(trie, texts, n) for n in range(len(texts))] == texts
        below = {number: [] for number in range(len(trie.nodes))}
        for number, node in enumerate(trie.nodes):
            if node.parent != NO_NODE:
                below[node.parent].append(number)
        whole = {
            trie.parents[n] for n, text in enumerate(texts) if texts.count(text) > 1 if len(text)
        }
        assert all(
            trie.start(n) == len(text) for n, text in enumerate(texts) if texts.count(text) > 1
        )
        for number, node in enumerate(trie.nodes):
            assert node.end - node.start >= 4 or number in whole
            assert len(below[number]) + trie.parents.count(number) >= 2


def test_what_is_shared_is_computed_once_on_a_workload_of_few_shots():
    rng = random.Random(2)

    def words(count):
        return rng.choices(range(10_000), k=count)

    few_shots = words(700)
    dialogues = [few_shots + words(rng.randint(30, 200)) for _ in range(20)]
    texts = [dialogue + words(rng.randint(20, 80)) for dialogue in dialogues for _ in range(16)]
    trie = build_trie(texts, least=16)
    assert forwarded(trie, texts) == distinct_tokens(texts) < 0.1 * sum(map(len, texts))
    assert len(trie.nodes) == 21
    # However long the few-shots are, what is shared behind them is not computed again.
    longer = words(20_000)
    texts = [longer + text for text in texts]
    assert forwarded(build_trie(texts, least=16), texts) == distinct_tokens(texts)


def test_levels_that_save_little_are_left_out():
    rng = random.Random(3)
    few_shots = rng.choices(range(10_000), k=100)
    texts = [few_shots + rng.choices(range(10_000), k=50) for _ in range(30)]
    texts += [texts[0][:-1] + [n] for n in (1, 2)]
    # Of 4,800 tokens the few-shots save 3,100, and 49 tokens of three texts 98: 1,602 are left.
    assert [node.end for node in build_trie(texts, least=16, worth=0.061).nodes] == [100, 149]
    trie = build_trie(texts, least=16, worth=0.062)
    assert [node.end for node in trie.nodes] == [100]
    assert trie.parents == [0] * 32
    assert build_trie(texts, least=16, worth=2.0) == ([], [NO_NODE] * 32)


def test_long_segments_are_cut_whether_shared_or_not():
    shared = list(range(100))
    texts = [[*shared, 7], [*shared, *range(50)], list(range(200, 291)), []]
    trie = build_trie(texts, least=10, most=30)
    assert [path(trie, texts, n) for n in range(4)] == texts
    lengths = [node.end - node.start for node in trie.nodes]
    assert max(lengths) == 30
    assert sorted(lengths) == sorted([30, 30, 30, 10, 30, 30, 30, 30, 1][: len(lengths)])
    assert all(len(text) - trie.start(n) <= 30 for n, text in enumerate(texts))
    assert forwarded(trie, texts) == 100 + 1 + 50 + 91


def test_no_texts_and_one():
    assert build_trie([]) == ([], [])
    assert build_trie([[5] * 50]) == ([], [NO_NODE])
    assert distinct_tokens([]) == 0
