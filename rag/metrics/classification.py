"""Label accuracy, the measure of FEVER (section 3.4)."""

from collections.abc import Sequence

import numpy as np


def label_accuracy(predictions: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """(N,) scores, 1.0 where the predicted label is the claim's, otherwise 0.0.

    Labels are compared as they are: a prediction that is no label at all is wrong.
    """
    pairs = zip(predictions, labels, strict=True)
    return np.array([prediction == label for prediction, label in pairs], dtype=np.float64)
