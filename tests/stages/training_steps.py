"""The four training steps at their smallest: inputs, settings, and a run of one."""

from world_models import WORDS, human, one_device, write_model

from cai_jax.data.schema import Comparison, Demonstration, Prompt, write_records
from cai_jax.stages import dpo, finetune, ppo, preference

# Each pair of axes with one of the stages: all of them with all would take minutes to compile.
MESHES = {
    "finetune": {"data": 2, "fsdp": 2, "tensor": 1},
    "preference": {"data": 2, "fsdp": 1, "tensor": 2},
    "dpo": {"data": 2, "fsdp": 1, "tensor": 2},
    "ppo": {"data": 1, "fsdp": 2, "tensor": 2},
}
SETTINGS = {
    "finetune": (finetune, {"rows": 4, "sequence_length": 32, "log_every": 1}),
    "preference": (preference, {"pairs": 4, "log_every": 1}),
    "dpo": (dpo, {"pairs": 4, "learning_rate": 3e-4, "log_every": 1}),
    "ppo": (
        ppo,
        {
            "prompts_per_iteration": 4,
            "max_new_tokens": 5,
            "iterations": 2,
            "learning_rate": 1e-3,
            "record_every": 1,
        },
    ),
}


def write_inputs(folder):
    """The inputs of each of the steps."""
    dialogues = [human(f"tell me about the {word}") for word in WORDS]
    write_records(
        folder / "demonstrations.jsonl",
        [Demonstration(str(i), dialogue, "the bike. " * i) for i, dialogue in enumerate(dialogues)],
    )
    write_records(
        folder / "comparisons.jsonl",
        [
            Comparison(str(i), dialogue, "the bike. " * i, "the boss", i / 10, "human")
            for i, dialogue in enumerate(dialogues)
        ],
    )
    write_records(
        folder / "prompts.jsonl",
        [Prompt(str(i), dialogue) for i, dialogue in enumerate(dialogues)],
    )
    model = write_model(folder / "model")
    return {
        "finetune": {"model": model, "data": [folder / "demonstrations.jsonl"]},
        "preference": {
            "model": model,
            "comparisons": [folder / "comparisons.jsonl"],
            "held_out": [folder / "comparisons.jsonl"],
        },
        "dpo": {"model": model, "comparisons": [folder / "comparisons.jsonl"]},
        "ppo": {
            "model": model,
            "preference_model": write_model(folder / "pm", seed=1, preference_model=True),
            "prompts": [folder / "prompts.jsonl"],
        },
    }


def run(kind, inputs, folder, **changes):
    stage, setting = SETTINGS[kind]
    """Runs a step in a folder that may be there, and finishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = stage.run(one_device(stage.default_config(), **{**setting, **changes}), inputs, folder)
    (folder / "manifest.json").write_text("{}")
    return counts
