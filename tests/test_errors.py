import pickle

import pytest

from omr_io import errors
from omr_io.errors import OmrError, TarError, Where


def all_errors(kind: type[OmrError]) -> set[type[OmrError]]:
    public = (sub for sub in kind.__subclasses__() if not sub.__name__.startswith("_"))
    return {kind}.union(*map(all_errors, public))


def test_the_message_says_what_where_and_how_to_mend() -> None:
    error = TarError(
        "header checksum is wrong",
        where=Where(shard="train-000000.tar", offset=1024),
        mend="Convert the shard again",
    )
    assert str(error) == (
        "header checksum is wrong (shard train-000000.tar, offset 1024). Convert the shard again"
    )


def test_row_zero_is_printed() -> None:
    assert str(Where(source="a.parquet", row=0)) == "source a.parquet, row 0"


@pytest.mark.parametrize("kind", sorted(all_errors(OmrError), key=lambda kind: kind.__name__))
def test_errors_survive_pickling_and_have_an_exit_code(kind: type[OmrError]) -> None:
    error = kind("what", where=Where(key="k"), mend="mend")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.where, again.mend) == (str(error), error.where, error.mend)
    assert kind.exit_code in (1, 2, 3, 4, 5, 75)


def test_every_error_of_the_module_is_in_the_tree() -> None:
    named = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert named - all_errors(OmrError) == {errors.OmrWarning}
