"""A server of the model in production, one for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.project import Project, serving


@pytest.fixture(scope="module")
def address(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(project, "--env-manager", "local", cwd=tmp_path_factory.mktemp("serving")) as address:
        yield address
