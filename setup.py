"""Puts ``conf/`` into the wheel as ``aqaa/conf``; everything else is said in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """The usual build, plus the configuration folder (an editable install reads the checkout's)."""

    def run(self) -> None:
        """Copy conf/ afresh, so that a file deleted here does not live on in build/."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "aqaa" / "conf"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / "conf", target)


setup(cmdclass={"build_py": BuildWithConf})
