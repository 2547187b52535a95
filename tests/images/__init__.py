"""End to end: the command line on real qcow2 images."""

import pytest

# assertions in these modules tell what they compare, as those in tests do
pytest.register_assert_rewrite("tests.images.disks", "tests.images.faults")
