"""The custom pipelines, as a clone has them: their files are in the folder `pipelines/` beside this package.

diffusers and users read them there. A wheel has the files in this folder, and not this one.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "pipelines")]
