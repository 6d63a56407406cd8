"""float64 is the tests' default, every test starts from the same random state, and hypothesis has three profiles.

`--hypothesis-profile=long` tries 1000 examples a law and compiles every case; "ci" few, where the environment says CI.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Building a random graph takes a tenth of a second, and the fixture below is the same for every example.
CALM = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
}
settings.register_profile("default", max_examples=200, **CALM)
settings.register_profile("ci", max_examples=50, derandomize=True, **CALM)
settings.register_profile("long", max_examples=1000, **CALM)
settings.load_profile("ci" if os.environ.get("CI") else "default")

torch.set_num_threads(1)  # the tensors are small, and pytest-xdist's workers share the cores


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)
