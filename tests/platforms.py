"""Marks of tests that need what an operating system lacks."""

import os
import sys

import pytest

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
needs_pipes = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among its files")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names of files")
