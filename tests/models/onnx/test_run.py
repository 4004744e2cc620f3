"""Running a model over samples, batch by batch."""

from __future__ import annotations

import numpy as np
from graphs import Network, one_line

from streamstats.errors import MismatchError
from streamstats.models.onnx.run import run_model


def test_run_model_gives_the_first_output_of_all_samples(network: Network) -> None:
    expected = network.activations()["head/fc"] @ network.constants["w3"]
    np.testing.assert_array_equal(run_model(network.path, network.x, batch_size=4), expected)
    one_line(lambda: run_model(network.path, network.x.astype(np.float64)), MismatchError, "expects float32")
    one_line(lambda: run_model(network.path, network.x[:, :2]), MismatchError, "(N, 3, 5, 6)")
