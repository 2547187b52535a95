"""Images, specs, plans and state that somebody wrote who is not to be trusted."""

import pytest

pytest.register_assert_rewrite("tests.images.disks", "tests.untrusted.scene")
