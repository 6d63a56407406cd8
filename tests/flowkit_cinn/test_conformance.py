import pytest

import flowkit.testing


@pytest.mark.parametrize("case", flowkit.testing.cases("cinn"), ids=repr)
def test_conformance(case):
    case.check()
