from cai_jax.data import rollouts
from cai_jax.data.schema import Rollout, Turn


def record(iteration, text):
    dialogue = (Turn("human", f"ask {text}"),)
    return Rollout(text, iteration, dialogue, f"say {text}", 0.0, 0.0, "stop")


def test_the_first_iteration_is_known_also_to_a_run_that_goes_on_later(tmp_path):
    kept = tmp_path / "rollouts.jsonl"
    first, later = [record(1, "a"), record(1, "b")], [record(9, "c"), record(9, "d")]
    expected = (["say a", "say b"], ["ask a", "ask b"])
    assert rollouts.first_texts(kept, first) == expected
    rollouts.append(kept, [*first, record(5, "x")])
    with open(kept, "a") as file:
        file.write('{"id": "half')  # of a line that another host is writing
    assert rollouts.first_texts(kept, later) == expected
