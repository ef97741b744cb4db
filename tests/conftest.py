"""What every test starts from: fixed seeds, a fixed number of threads, no open figure, no network."""

import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples in every run: a commit passes everywhere or nowhere. For new ones, --hypothesis-profile=explore.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("fixed")

# Read when matplotlib and transformers are first imported, here and in processes that tests start.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Workers of pytest-xdist share the cores; alone, torch may take them all.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else torch.get_num_threads()
SEED = 20190501


@pytest.fixture(autouse=True)
def _fixed_start() -> Iterator[None]:
    """Seed torch before each test, and undo the global settings that a test may have changed."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def rng() -> np.random.Generator:
    """Give each test the same stream of numbers."""
    return np.random.default_rng(SEED)
