"""A hub on this machine, where the library finds it, with an empty cache."""

import contextlib

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _cache_assets

from tests.hub.server import serving


@contextlib.contextmanager
def serving_to_the_library(home):
    """The library reads its environment once, as it is imported: what it read is replaced."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(home / "assets"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def hub(tmp_path):
    with serving_to_the_library(tmp_path / "hf") as hub:
        yield hub


@pytest.fixture
def offline(monkeypatch):
    """A function that sets HF_HUB_OFFLINE."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
