from tests.models.checkpoints.conftest import folder, folders, kind, narrow, pipeline, pipelines

__all__ = ["folder", "folders", "kind", "narrow", "pipeline", "pipelines"]
