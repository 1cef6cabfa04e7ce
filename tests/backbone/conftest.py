"""Stages without a trainer, as the stages' own tests have them."""

from tests.stages.conftest import attach

__all__ = ["attach"]
