import pytest
from ml_collections import ConfigDict

from cai_jax.core.configuration import (
    assign,
    load_config,
    nearest,
    override,
    parse_value,
    plain,
)
from cai_jax.errors import InputError


def make() -> ConfigDict:
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.model = "tiny"
    config.steps = ConfigDict(sort_keys=False)
    for name in ("one", "two"):
        config.steps[name] = ConfigDict(
            {"learning_rate": 0.1, "epochs": 1, "remat": False, "revisions": (1, 2), "stop": None}
        )
        config.steps[name].model = config.get_ref("model")
    return config.lock()


def refuses(config: ConfigDict, text: str) -> str:
    before = config.to_json_best_effort()
    with pytest.raises(InputError) as error:
        override(config, [text])
    assert config.to_json_best_effort() == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_values_are_read_as_the_type_that_is_there():
    config = make()
    override(
        config,
        [
            "seed=7",
            "steps.one.learning_rate=1e-3",
            "steps.one.epochs=3",
            "steps.one.remat=true",
            "steps.one.revisions=0,4",
            "steps.two.revisions=[3]",
            "steps.two.stop=End=1",
        ],
    )
    one, two = config.steps.one, config.steps.two
    assert (config.seed, one.learning_rate, one.epochs, one.remat) == (7, 1e-3, 3, True)
    assert (one.revisions, two.revisions, two.stop) == ((0, 4), (3,), "End=1")
    assert (two.learning_rate, two.epochs, two.remat) == (0.1, 1, False)


def test_a_whole_number_does_for_a_number_and_becomes_one():
    config = make()
    override(config, ["steps.one.learning_rate=2"])
    assert isinstance(config.steps.one.learning_rate, float)
    assign(config, "steps.two.learning_rate", 3, "here")
    assert isinstance(config.steps.two.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps.one.learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("steps.three.epochs=1", "unknown key 'three'; expected one of one, two"),
        ("seed.x=1", "'seed' is a value, it has no key 'x'"),
        ("seed", "expected --config.KEY=VALUE, found no '='"),
        ("seed=1.5", "--config.seed: expected a whole number, found '1.5'"),
        ("steps.one.epochs=two", "expected a whole number, found 'two'"),
        ("steps.one.remat=yes", "expected true or false, found 'yes'"),
        ("steps.one.learning_rate=nan", "expected a number, found nan"),
        ("steps.one.revisions=1,b", "expected a list, each item a whole number, found '1,b'"),
        ("steps.one=1", "a group of keys; set one of epochs, learning_rate"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(text, message):
    assert message in refuses(make(), text)


def test_a_shared_value_changes_for_all_and_a_key_of_a_step_for_that_step_alone():
    config = make()
    override(config, ["model=other"])
    assert [config.steps[name].model for name in ("one", "two")] == ["other", "other"]
    override(config, ["steps.one.model=own", "model=third"])
    assert [config.steps[name].model for name in ("one", "two")] == ["own", "third"]


def test_a_group_is_assigned_key_by_key_and_keeps_the_others():
    config = make()
    assign(config, "steps.one", {"epochs": 5, "stop": "x"}, "step")
    assert (config.steps.one.epochs, config.steps.one.stop) == (5, "x")
    assert config.steps.one.learning_rate == 0.1
    with pytest.raises(InputError, match="step.epoch: unknown key 'epoch'; did you mean 'epochs'"):
        assign(config, "steps.one", {"epoch": 5}, "step")
    with pytest.raises(InputError, match="step: expected a group of keys, found 3"):
        assign(config, "steps.one", 3, "step")


@pytest.mark.parametrize(
    ("text", "old", "value"),
    [
        ("0", True, False),
        ("-3", 1, -3),
        ("3", 1.0, 3.0),
        ("a,b", ["x"], ["a", "b"]),
        ("(1, 2)", (0,), (1, 2)),
        ("", (1,), ()),
        ("12", "text", "12"),
        ("12", None, 12),
        ("plain words", None, "plain words"),
    ],
)
def test_parse_value(text, old, value):
    found = parse_value(text, old, "here")
    assert found == value
    assert type(found) is type(value)


def test_plain_gives_json_with_references_resolved():
    config = make()
    assert plain(config)["steps"]["two"] == {
        "learning_rate": 0.1,
        "epochs": 1,
        "remat": False,
        "revisions": [1, 2],
        "stop": None,
        "model": "tiny",
    }
    assert plain([config.get_ref("seed")]) == [0]
    with pytest.raises(InputError, match=r"config.a\[1\]: expected a number, .* found set"):
        plain({"a": [1, {2}]})


def test_nearest_names_the_close_one_or_all():
    assert nearest("finetun", ["finetune", "ppo"]) == "did you mean 'finetune'?"
    assert nearest("x", ["finetune", "ppo"]) == "expected one of finetune, ppo"


def test_a_loaded_config_is_locked(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({'a': 1})\n"
    )
    config = load_config(str(path))
    assert config.a == 1
    with pytest.raises(AttributeError, match="locked"):
        config.b = 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", ":1: SyntaxError"),
        ("x = 1\n", "expected a function get_config(), found none"),
        ("def get_config():\n\n    return 1 / 0\n", ":3: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return {}\n", "must return a ConfigDict, found dict"),
        (
            "from cai_jax.errors import InputError\n"
            "def get_config():\n    raise InputError('step x: no')\n",
            "config.py: step x: no",
        ),
    ],
)
def test_a_config_file_that_does_not_work_is_refused_with_its_line(tmp_path, source, message):
    path = tmp_path / "config.py"
    path.write_text(source)
    with pytest.raises(InputError) as error:
        load_config(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_config_file_is_refused():
    with pytest.raises(InputError, match="no/such.py: expected a config file, found none"):
        load_config("no/such.py")
