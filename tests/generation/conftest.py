"""One tiny Llama for all tests of generation, here and in torch."""

import pytest
import tiny_models

from cai_jax import checkpoints


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """(model, torch module)."""
    folder = tmp_path_factory.mktemp("llama")
    module = tiny_models.write_llama(folder)
    return checkpoints.load_model(folder), module
