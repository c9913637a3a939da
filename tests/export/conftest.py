"""Sizes that are symbols cannot be checked as numbers are."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True, scope="module")
def unchecked_shapes():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
