"""key=value arguments into a dataclass, and its help."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from e2net.arguments import help_text, output_folder, read_settings, refuse_overrides


@dataclass(frozen=True)
class Own:
    name: Annotated[str, "is needed"]
    rate: Annotated[float | None, "a number"] = None
    sides: Annotated[int | list, "one or two"] = 3
    fast: Annotated[bool, "or not"] = True
    way: Annotated[Literal["up", "down"], "one of two words"] = "up"


@dataclass(frozen=True)
class Passing:
    steps: Annotated[int, "of the work"] = 20
    overrides: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "argument, expected",
    [
        ("rate=2", 2.0),
        ("rate=1e-3", 0.001),
        ("rate=null", None),
        ("sides=[1, 2]", [1, 2]),
        ("fast=false", False),
        ("way=down", "down"),
    ],
)
def test_values_are_of_the_fields_type(argument, expected):
    value = getattr(read_settings(Own, ["name=*=:", argument]), argument.partition("=")[0])
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nam=x"], "unknown setting 'nam'; did you mean name?"),
        (["name="], "name has no value"),
        ([], "name has no value"),
        (["name=a", "rate=1", "rate=2"], "rate is given twice"),
        (["name=a", "rate=fast"], "rate=fast: expected float or null, found 'fast'"),
        (["name=a", "rate=1e999"], "rate=1e999: expected float or null, found inf"),
        (["name=a", "sides=true"], "sides=true: expected int or list, found True"),
        (["name=a", "way=left"], "way=left: expected up or down, found 'left'"),
        (["name=a", "sides={"], "sides={: expected int or list, found '{'"),
        (["name=a", "~rate"], "expected key=value, found '~rate'"),
        (["name=a", "overrides=x"], "unknown setting 'overrides'"),
    ],
)
def test_what_is_no_argument(arguments, words):
    with pytest.raises(ValueError) as error:
        read_settings(Own, arguments)
    assert str(error.value).startswith(words)


def test_the_rest_is_passed_on_where_there_is_a_field_for_it():
    given = ["size=64", "~neck", "steps=7", "+a.b=[1,2]", "overrides=x", "size=32"]
    assert read_settings(Passing, given) == Passing(7, ("size=64", "~neck", "+a.b=[1,2]", "overrides=x", "size=32"))
    for flag in ("-m", "frog"):
        with pytest.raises(ValueError, match=f"expected key=value, found '{flag}'"):
            read_settings(Passing, [flag])


@pytest.mark.parametrize("override", ["hydra.run.dir=x", "++hydra.run=x", "~hydra/run", "hydra.run/dir=x"])
def test_overrides_of_what_is_reserved(override):
    reserved = ["hydra.run", "hydra/run"]
    with pytest.raises(ValueError, match=r"hydra.run.*: ours; leave it out"):
        refuse_overrides(["size=3", override], reserved, "ours")
    refuse_overrides(["hydra.runs=3", "hydra=x"], reserved, "ours")


def test_help_has_a_line_for_each_setting():
    assert help_text(Own, "Does it.\n").splitlines() == [
        "Does it.",
        "",
        "Settings (key=value):",
        "  name=      is needed",
        "  rate=null  a number",
        "  sides=3    one or two",
        "  fast=true  or not",
        "  way=up     one of two words",
    ]
    assert "overrides" not in help_text(Passing, "")


def test_programs_that_start_in_one_second_write_to_folders_of_their_own():
    assert len({output_folder(None, "check") for _ in range(20)}) == 20
