"""Slow references in float64 numpy and torch for what generation computes fast."""

import numpy as np
import torch

torch.set_num_threads(1)  # these models are too small to share out


def log_softmax(logits):
    """Over the last axis."""
    logits = np.asarray(logits, np.float64)
    below = logits - logits.max(axis=-1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=-1, keepdims=True))


def truncated_softmax(logits, temperature, top_k, top_p):
    """Temperature, then top-k, then top-p with a sort; ties of the last one kept are kept."""
    probabilities = np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))
    if top_k:
        kept = np.sort(probabilities)[::-1][: min(top_k, len(logits))][-1]
        probabilities = np.where(probabilities >= kept, probabilities, 0)
        probabilities /= probabilities.sum()
    if top_p < 1:
        ordered = np.sort(probabilities)[::-1]
        kept = ordered[np.searchsorted(np.cumsum(ordered), top_p - 1e-9)]
        probabilities = np.where(probabilities >= kept, probabilities, 0)
    return probabilities / probabilities.sum()


def next_logits(module, ids):
    """Logits [V] of torch after the tokens `ids`."""
    with torch.no_grad():
        return module(torch.tensor([list(ids)])).logits[0, -1].numpy()


def sample(module, prompt, uniforms, ends=(), temperature=1.0, top_k=0, top_p=1.0):
    """One token for each of `uniforms`, without a cache: tokens and both log-probabilities."""
    tokens, logprobs, tempered = [], [], []
    for uniform in uniforms:
        logits = next_logits(module, [*prompt, *tokens])
        if temperature == 0:
            token, chosen = int(logits.argmax()), 0.0
        else:
            probabilities = truncated_softmax(logits, temperature, top_k, top_p)
            token = int((np.cumsum(probabilities) > uniform).argmax())
            chosen = np.log(probabilities[token])
        tokens.append(token)
        logprobs.append(log_softmax(logits)[token])
        tempered.append(chosen)
        if token in ends:
            break
    return tokens, logprobs, tempered


def logprobs(module, prompt, completion):
    """Log-probabilities of a completion's tokens."""
    ids = [*prompt, *completion]
    with torch.no_grad():
        logits = module(torch.tensor([ids])).logits[0].numpy()
    every = log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
    return every[len(prompt) - 1 :].tolist()
