"""Loads the model that the setting `model` names."""

from model import Artifact, ArtifactError, load_artifact

STORE_PREFIX = "bentoml:"


def load_named(name: str) -> Artifact:
    """Load an artifact from a folder, `bentoml:TAG` from BentoML's model store, or the embedded one for no name.

    Raises:
        ArtifactError: the artifact is invalid, or the store has no such model.
    """
    if not name.startswith(STORE_PREFIX):
        return load_artifact(name or None)
    import bentoml  # noqa: PLC0415 - slow to import, and needed for its store only

    try:
        stored = bentoml.models.get(name.removeprefix(STORE_PREFIX))
    except bentoml.exceptions.BentoMLException as error:
        raise ArtifactError(f"{name}: {error}") from error
    return load_artifact(stored.path)
