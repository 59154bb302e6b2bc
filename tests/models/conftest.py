from tests.models.checkpoints.conftest import folder, folders, kind, narrow, pipeline, pipelines, single_files, tensors

__all__ = ["folder", "folders", "kind", "narrow", "pipeline", "pipelines", "single_files", "tensors"]
