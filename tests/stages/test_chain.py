"""x"""
from tests.conftest import Chain
def test_x(chain): print(chain.folder)
