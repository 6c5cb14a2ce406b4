"""The games of results, within reach of analyses."""

from mmlens.analyses import games
from mmlens.result import games as home


def test_every_function_of_its_home_is_here() -> None:
    assert all(getattr(games, name) is getattr(home, name) for name in games.__all__)
    public = [name for name in vars(home) if name.islower() and not name.startswith("_")]
    own = {name for name in public if getattr(getattr(home, name), "__module__", "") == home.__name__}
    assert own == set(games.__all__)
