"""Shared by the tests of the course."""

import pytest


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty current folder that holds notebooks/."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "notebooks"
