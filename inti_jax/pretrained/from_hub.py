"""Choose the files that a checkpoint on the Hub needs, and download no others."""

from pathlib import Path, PurePosixPath

from inti_jax.errors import UserError
from inti_jax.hub.names import HubName
from inti_jax.hub.repository import Repository
from inti_jax.models.tokenizer import VOCABULARY_FILES
from inti_jax.pretrained import file_kinds, sources

_SETTINGS = ("config.json", "open_clip_config.json", "preprocessor_config.json")


def fetch(name: HubName) -> Path:
    """Download a checkpoint and the settings beside it, and return its path in the library's cache.

    That is a file where `name` names one or the repository holds one of this project's, and else the
    repository's directory with one set of weights, safetensors before pickles. Raises UserError where the
    repository lacks what it takes, or where `name` is a pickle that has safetensors beside it.
    """
    repository = Repository(name)
    if name.file is None:
        settings = _settings(repository, "")
        if not settings:
            raise UserError(
                f"{name} has no config.json and no open_clip_config.json: name the file with the weights, as "
                f"{name}/FILE.safetensors"
            )
        directory = settings[0].parent
        path = _weights(repository, "", sources.preferred(repository.__contains__, directory))
        return path if file_kinds.is_own(path) else directory
    folder = name.file.removesuffix(PurePosixPath(name.file).name)
    if not name.file.endswith((".safetensors", ".json")):
        safe = [file for file in sources.WEIGHTS if file.endswith(".safetensors")]
        for file in (*safe, str(PurePosixPath(name.file).with_suffix(".safetensors").name)):
            if folder + file in repository:
                raise UserError(f"{name} may be a pickle, and the repository has {folder}{file}: name that")
    path = _weights(repository, folder, PurePosixPath(name.file).name)
    if not file_kinds.is_own(path):
        _settings(repository, folder)
    return path


def fetch_file(name: HubName) -> Path:
    """Download the one file that `name` names, and return its path in the library's cache."""
    repository = Repository(name)
    return repository.get(str(name.file))


def _settings(repository: Repository, folder: str) -> list[Path]:
    """Download the settings in a folder of the repository, and the vocabulary of texts."""
    found = [repository.get(folder + file) for file in _SETTINGS if folder + file in repository]
    vocabulary = next((file for file in VOCABULARY_FILES if folder + file in repository), None)
    for file in (vocabulary, "merges.txt" if vocabulary == "vocab.json" else None):
        if file is not None and folder + file in repository:
            repository.get(folder + file)
    return found


def _weights(repository: Repository, folder: str, file: str) -> Path:
    """Download a file of weights, or an index with its shards."""
    path = repository.get(folder + file)
    if file.endswith(".index.json"):
        for shard in sources.shard_names(path):
            repository.get(folder + shard)
    return path
