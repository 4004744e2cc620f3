"""The example configurations load, and the published schema is that of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamstats.config import JobConfig, load_config

CONFIGS = Path(__file__).parent.parent / "configs"
SERVICE = CONFIGS / "service.yaml"
"""Loaded by the tests of the service."""


@pytest.mark.parametrize("path", sorted(set(CONFIGS.glob("*.yaml")) - {SERVICE}), ids=lambda path: path.name)
def test_every_example_configuration_loads(path: Path) -> None:
    config = load_config(path)
    assert config.cluster.chosen().threads >= 1
    assert all(rule.match for rule in config.rules())


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((CONFIGS / "schema.json").read_text())
    assert published == JobConfig.model_json_schema(), (
        "write it again: python -c 'import json; from streamstats.config import JobConfig; "
        "print(json.dumps(JobConfig.model_json_schema(), indent=2))' > configs/schema.json"
    )
