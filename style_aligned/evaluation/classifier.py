"""The classifier that looks at generated images: that of the embedded model."""

from style_aligned.models.mini.classifier import (
    WEIGHTS,
    Classification,
    Classifier,
    load_classifier,
    read_classifier_file,
)

__all__ = ["WEIGHTS", "Classification", "Classifier", "load_classifier", "read_classifier_file"]
