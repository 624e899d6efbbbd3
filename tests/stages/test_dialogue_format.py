"""Stages in the chat format: what the model is asked, and what it is trained on, by hand."""

import json
import types

import jax
import pytest
from scripted import CRITIQUE_FEW_SHOT, choose, run_stage, speak, write_constitution
from tiny_models import write_llama, write_tokenizer
from world_models import human, one_device

from cai_jax import checkpoints
from cai_jax.data import comparisons, example_sources, shares
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.schema import (
    Answer,
    Chain,
    Comparison,
    Demonstration,
    Pair,
    Round,
    read_records,
    write_records,
)
from cai_jax.errors import InputError
from cai_jax.stages import (
    compare,
    critique_revise,
    dpo,
    evaluate,
    feedback,
    finetune,
    ppo,
    preference,
)
from cai_jax.text import formats

STAGES = (compare, critique_revise, dpo, evaluate, feedback, finetune, ppo, preference)


class Turns:
    """A tokenizer whose text of a chat prompt is JSON, a token a character."""

    eos_id = 0
    stops = ()

    def encode(self, text):
        return [ord(character) for character in text]

    def encode_prompts(self, prompts):
        return [self.encode(json.dumps([prompt.turns, prompt.begun])) for prompt in prompts]

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture
def asked(monkeypatch):
    """Models that say their number; returns what they were asked, as [turns, beginning]."""
    texts = speak(monkeypatch, lambda text, number: f"said {number}.")

    def in_format(model, name):
        assert name == "chat"
        return types.SimpleNamespace(tokenizer=Turns(), config=model.config)

    monkeypatch.setattr(checkpoints, "in_format", in_format)
    return texts


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "p", "prompt": "Question?"}\n')
    constitution = write_constitution(tmp_path / "constitution.json")
    return {"model": tmp_path, "prompts": path, "constitution": constitution}


def prompts(asked):
    return [json.loads(text) for text, *_ in asked]


QUESTION = ["human", "Question?"]
SHOT = [["human", "q0"], ["assistant", "a0"], ["human", "c0"], ["assistant", "d0"]]
SHOT += [["human", "r0"], ["assistant", "s0"]]


def test_a_chain_is_one_conversation(tmp_path, given, asked):
    folder = tmp_path / "step"
    counts = run_stage(
        critique_revise,
        folder,
        given,
        dialogue_format="chat",
        num_rounds=2,
        num_few_shots=1,
        principles=("lies",),
    )
    answered = [*SHOT, QUESTION, ["assistant", "said 0."]]
    again = [*SHOT, QUESTION, ["assistant", "said 2."]]
    request, mend = ["human", "Criticise lies."], ["human", "Revise lies."]
    assert prompts(asked) == [
        [[QUESTION], ""],
        [[*answered, request], ""],
        [[*answered, request, ["assistant", "said 1."], mend], ""],
        [[*again, request], ""],
        [[*again, request, ["assistant", "said 3."], mend], ""],
    ]
    [chain] = read_records(folder / "chains.jsonl", Chain)
    assert [step.revision for step in chain.rounds] == ["said 2.", "said 4."]
    assert counts["too_long"] == 0


def test_few_shots_that_are_no_conversation_are_refused_before_the_run(tmp_path, given):
    value = json.loads(given["constitution"].read_text())
    value["critique_few_shots"][0] = CRITIQUE_FEW_SHOT.partition("\n\nRevision:")[0]
    given["constitution"].write_text(json.dumps(value))
    with pytest.raises(InputError, match="critique few-shot: expected text that begins"):
        run_stage(critique_revise, tmp_path / "step", given, dialogue_format="chat")


def test_pairs_are_answers_in_the_chat(tmp_path, given, asked):
    run_stage(compare, tmp_path / "step", given, dialogue_format="chat")
    assert prompts(asked) == [[[QUESTION], ""]] * 2
    [pair] = read_records(tmp_path / "step" / "pairs.jsonl", Pair)
    assert (pair.response_a, pair.response_b) == ("said 0.", "said 1.")


@pytest.mark.parametrize("reasons", [False, True])
def test_a_question_is_a_turn_and_its_answer_begun(tmp_path, given, asked, monkeypatch, reasons):
    chosen = choose(monkeypatch, lambda text: (-1.0, -2.0))
    pair = Pair("p", human("Question?"), "one", "two ]]] The answer is: (B)")
    write_records(tmp_path / "pairs.jsonl", [pair])
    roles = {"model": tmp_path, "pairs": tmp_path / "pairs.jsonl"}
    roles["constitution"] = given["constitution"]
    run_stage(
        feedback,
        tmp_path / "step",
        roles,
        dialogue_format="chat",
        placement="fixed",
        num_few_shots=0 if reasons else 1,
        chain_of_thought=reasons,
    )
    [[turns, begun]] = [json.loads(text) for text in chosen]
    [(role, said)] = turns
    assert role == "human"
    assert said.startswith("Consider the following conversation between a human")
    assert said.endswith(" Options:\n (A) [[[one]]]\n (B) [[[two ]] The answer is B)]]]")
    if reasons:
        assert begun == "Let's think step by step: said 0.\n\nSo the answer is:"
        assert prompts(asked) == [[turns, "Let's think step by step:"]]
    else:
        assert begun == "The answer is:"
        assert said.count("Consider the following") == 2
        assert said.count("\n\nThe answer is:") == 1  # the few-shot's own
        assert not asked


def chat_text(*texts):
    """The template of `tiny_models`, in which "</s>" stands for the end token."""
    roles = ("user", "assistant")
    return "".join(f"<{roles[i % 2]}>{text}</s>" for i, text in enumerate(texts)) + "<assistant>"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A language model and a preference model with a chat template."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("language", "preference"):
        write_llama(folder / name, preference_model=name == "preference", num_hidden_layers=1)
        write_tokenizer(folder / name, chat=True)
    return {name: folder / name for name in ("language", "preference")}


def chat_ids(model, *texts):
    pieces = chat_text(*texts).split("</s>")
    parts = [model.tokenizer.encode(piece) for piece in pieces]
    return [i for part in parts for i in (*part, 1)][:-1]


def test_finetuning_trains_what_the_chat_samples(tmp_path, models):
    model = checkpoints.load_model(models["language"])
    records = [
        Demonstration("d", human("hi", "hello", "the man?"), "no</s>"),
        Chain("c", human("hi"), "r", (Round("p", "bad", "the"), Round("p", "bad", "human"))),
    ]
    chains, demonstrations = tmp_path / "chains.jsonl", tmp_path / "demonstrations.jsonl"
    write_records(chains, records[1:])
    write_records(demonstrations, records[:1])
    config = one_device(
        finetune.default_config(), dialogue_format="chat", revisions=(2,), sequence_length=64
    )
    chat = checkpoints.in_format(model, "chat")
    lay_out = formats.dialogue_format("chat").dialogue
    data = [chains, demonstrations]
    lengths, _ = example_sources.read(config, data, chat, lay_out, BadRecords())
    expected = {
        "c": (chat_ids(model, "hi"), model.tokenizer.encode("human")),
        "d": (chat_ids(model, "hi", "hello", "the man?"), model.tokenizer.encode("no</s>")),
    }
    assert len(lengths) == 2
    for example in shares.items([of.at for of in lengths]):
        prompt, response = expected[example.record_id]
        assert example.ids.tolist() == [*prompt, *response, 1]
        weights = [0.0] * len(prompt) + [1.0] * (len(response) + 1)
        assert example.weights.tolist() == weights


def test_comparisons_are_conversations(models):
    model = checkpoints.load_model(models["preference"])
    record = Comparison("c", human("hi"), "yes", "no", p_a=1.0, source="human")
    tokenizer, chat = model.tokenizer.in_format("chat"), formats.dialogue_format("chat")
    [[pair]], _ = comparisons.fit_pairs([record], tokenizer, chat.dialogue, 64, "refuse")
    assert pair.a == [*chat_ids(model, "hi"), *model.tokenizer.encode("yes"), 1]
    assert pair.b == [*chat_ids(model, "hi"), *model.tokenizer.encode("no"), 1]


@pytest.mark.parametrize(("stage", "kind"), [(preference, "preference"), (dpo, "language")])
def test_comparisons_are_trained_on_as_conversations(tmp_path, models, monkeypatch, stage, kind):
    """What a stage trains on is what `fit_pairs` makes in the chat format."""
    record = Comparison("c", human("hi"), "yes", "no", p_a=1.0, source="human")
    write_records(tmp_path / "comparisons.jsonl", [record])
    seen = []

    def fit_pairs(records, tokenizer, render, *rest):
        seen.append(fitted := fit(records, tokenizer, render, *rest))
        raise InterruptedError(fitted)

    fit = comparisons.fit_pairs
    monkeypatch.setattr(comparisons, "fit_pairs", fit_pairs)
    roles = {"model": models[kind], "comparisons": tmp_path / "comparisons.jsonl"}
    with pytest.raises(InterruptedError):
        run_stage(stage, tmp_path / "step", roles, dialogue_format="chat")
    model = checkpoints.load_model(models["preference"])
    [[pair]], _ = seen[0]
    assert pair.a == [*chat_ids(model, "hi"), *model.tokenizer.encode("yes"), 1]


def test_ppo_and_evaluation_prompt_with_the_template(tmp_path, models):
    model = checkpoints.load_model(models["language"])
    (tmp_path / "prompts.jsonl").write_text('{"id": "p", "prompt": "hi </s>"}\n')
    chat = checkpoints.in_format(model, "chat")
    config = one_device(ppo.default_config(), dialogue_format="chat")
    fitted = ppo.read_prompts(config, tmp_path / "prompts.jsonl", chat)
    expected = [
        *model.tokenizer.encode("<user>hi </s>"),
        1,
        *model.tokenizer.encode("<assistant>"),
    ]
    assert fitted.ids == [expected]

    roles = {
        "models": {"m": models["language"]},
        "preference_model": models["preference"],
        "red_team": tmp_path / "prompts.jsonl",
    }
    (tmp_path / "evaluation").mkdir()
    config = one_device(
        evaluate.default_config(),
        dialogue_format="chat",
        judge="preference_model",
        max_new_tokens=4,
        temperature=0.0,
    )
    evaluate.run(config, roles, tmp_path / "evaluation")
    [answer] = read_records(tmp_path / "evaluation" / "samples.jsonl", Answer)
    from cai_jax.generation.generate import generate
    from cai_jax.generation.preference import preference_scores
    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.text.dialogue import cut_at_stop

    [greedy] = generate(
        model, [expected], SamplingSettings(4, 0.0), jax.random.split(jax.random.key(0), 1)
    )
    assert answer.response == cut_at_stop(greedy.text)
    judge = checkpoints.load_model(models["preference"])
    text = [*expected, *judge.tokenizer.encode(answer.response), 1]
    [score] = preference_scores(judge, [text], batch_size=1)
    assert answer.verdict["score"] == pytest.approx(float(score), abs=1e-5)


def test_a_model_without_a_template_is_refused_in_one_line(tmp_path, given):
    write_llama(tmp_path / "model", num_hidden_layers=1)
    given["model"] = tmp_path / "model"
    with pytest.raises(InputError) as error:
        run_stage(compare, tmp_path / "step", given, dialogue_format="chat")
    assert str(error.value).startswith("dialogue_format chat: the model's tokenizer has no chat")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_format_is_refused(stage):
    roles = {"model": "m", "data": "d", "comparisons": "c", "preference_model": "p"}
    roles |= {"prompts": "p", "constitution": "c", "models": {"m": "m"}}
    config = one_device(stage.default_config(), dialogue_format="xml")
    with pytest.raises(InputError, match="dialogue_format: expected plain or chat, found 'xml'"):
        stage.check(config, roles)


def test_by_default_text_is_plain():
    assert {stage.default_config().dialogue_format for stage in STAGES} == {"plain"}
