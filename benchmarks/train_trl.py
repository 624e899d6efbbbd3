"""TRL's trainers, an update at a time, for `benchmarks/train.py`, which starts this.

    PYTHON benchmarks/train_trl.py sft|reward|ppo[_default] MODEL_FOLDER BATCHES.npz

PYTHON has TRL: 1.16 for supervised finetuning and reward models, 1.12, the last that has it, for
PPO. By default it computes activations once more in the backward pass; without "_default" it is
told to keep them. For every line that it reads it makes one update, and then writes one line: the
update's loss.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

LEARNING_RATE = 1e-4


class InStep(transformers.TrainerCallback):
    """Waits for a line before each update, and answers after it."""

    def on_step_begin(self, *args: Any, **rest: Any) -> None:
        """Before an update."""
        sys.stdin.readline()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        """After it; at the end of a training too, without a loss."""
        if "loss" in logs:
            answer(logs["loss"])


class InPPOStep(transformers.TrainerCallback):
    """The same for TRL's PPO, which announces the end of its updates alone."""

    def on_step_end(self, *args: Any, **rest: Any) -> None:
        """After an update."""
        answer(0.0)
        sys.stdin.readline()


def answer(loss: float) -> None:
    """One line to whoever asked."""
    print(json.dumps({"loss": loss}), file=ANSWERS, flush=True)


def settings(rounds: int, batch: int, folder: str) -> dict[str, Any]:
    """What all of TRL's configs take: the optimizer of the others, nothing saved or reported."""
    recomputing = {} if DEFAULT else {"gradient_checkpointing": False}
    return recomputing | {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": rounds,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def tokenizer(vocab_size: int) -> Any:
    """One word an id: the trainers want a tokenizer, and are given ids."""
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(vocab_size)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="w0", eos_token="w1", unk_token="w0"
    )


def language_model(folder: str) -> Any:
    """The folder's model."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def scored_model(folder: str) -> Any:
    """The folder's model with a score head of zeros."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    torch.nn.init.zeros_(model.score.weight)
    model.config.pad_token_id = 0
    return model


def in_order(trainer: Any) -> Any:
    """The trainer, reading its data as they stand."""
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    return trainer


def sft(folder: str, data: Any, scratch: str) -> None:
    """Supervised finetuning on rows [rounds, B, T]."""
    from trl import SFTConfig, SFTTrainer

    rows = data["rows"]
    rounds, batch, length = rows.shape
    model = language_model(folder)
    in_order(
        SFTTrainer(
            model=model,
            args=SFTConfig(**settings(rounds, batch, scratch), max_length=length),
            train_dataset=Dataset.from_dict({"input_ids": rows.reshape(-1, length).tolist()}),
            processing_class=tokenizer(model.config.vocab_size),
            callbacks=[InStep()],
        )
    ).train()


def reward(folder: str, data: Any, scratch: str) -> None:
    """A reward model on comparisons [rounds, B, 2, T], of which the first text is the better."""
    from trl import RewardConfig, RewardTrainer

    texts = data["texts"]
    rounds, batch, _, length = texts.shape
    flat = texts.reshape(-1, 2, length)
    columns = {"chosen_ids": flat[:, 0].tolist(), "rejected_ids": flat[:, 1].tolist()}
    model = scored_model(folder)
    in_order(
        RewardTrainer(
            model=model,
            args=RewardConfig(**settings(rounds, batch, scratch), max_length=length),
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer(model.config.vocab_size),
            callbacks=[InStep()],
        )
    ).train()


def ppo(folder: str, data: Any, scratch: str) -> None:
    """PPO from prompts [rounds, B, P], with a value model of its own."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    prompts = data["prompts"]
    rounds, batch, length = prompts.shape
    options = settings(rounds, batch, scratch)
    del options["max_steps"]
    policy = language_model(folder)
    trainer = PPOTrainer(
        args=PPOConfig(
            **options,
            total_episodes=rounds * batch,
            num_ppo_epochs=int(data["epochs"]),
            num_mini_batches=1,
            local_rollout_forward_batch_size=batch,
            response_length=int(data["responses"]),
            num_sample_generations=0,
            temperature=1.0,
            kl_coef=0.05,
        ),
        processing_class=tokenizer(policy.config.vocab_size),
        model=policy,
        ref_model=language_model(folder),
        reward_model=scored_model(folder),
        value_model=scored_model(folder),
        train_dataset=Dataset.from_dict({"input_ids": prompts.reshape(-1, length).tolist()}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[0].tolist()}),
        callbacks=[InPPOStep()],
    )
    sys.stdin.readline()
    trainer.train()


if __name__ == "__main__":
    # The trainers print to standard output too.
    ANSWERS, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as scratch:
        DEFAULT = sys.argv[1].endswith("_default")
        task = {"sft": sft, "reward": reward, "ppo": ppo}[sys.argv[1].removesuffix("_default")]
        task(str(Path(sys.argv[2])), np.load(sys.argv[3]), scratch)
