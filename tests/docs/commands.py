"""Shell commands out of a page, and whether each would be taken: its program, its keys and their values.

In this process and without running any: configs are composed and checked, settings are read, benchmarks parse their
arguments. What a reader has to fill in (DIR, RUN, ...) stands as it is, but for checkpoints, which are read.
"""

import argparse
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from unittest import mock

import known_settings as settings
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from e2net.__main__ import PROGRAMS
from e2net.arguments import read_settings
from e2net.runs import resolve
from e2net.runs.config import (
    check_adapting,
    check_evaluation,
    check_training,
    compose_evaluation,
    hydra_message,
)

# How a line begins that is a command, where it is not in a block of them.
COMMAND = re.compile(r"(?:E2NET_\w+=\S+ )?(?:python|e2net|pytest|pip install|srun|hf|docker|curl) (?!\.\.\.)")
_END = ("&&", "||", ";", "|", "&")
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class WrongError(Exception):
    """A command that would not be taken."""


def split(text):
    """Simple commands of a block: lists of words, variables filled in, of a loop the first turn."""
    known = {"PWD": "/here"}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if word not in _END:
                words.append(re.sub(r"\$(\w+)", lambda name: known.get(name[1], name[0]), word))
                continue
            words = words[1:] if words[:1] == ["do"] else words
            if words[:1] == ["for"]:
                known[words[1]] = words[3]
            elif len(words) == 1 and re.match(r"[A-Z]\w*=", words[0]):
                name, _, value = words[0].partition("=")
                known[name] = value
            elif words and words != ["done"]:
                yield words
            words = []


def check(words, run):
    """Makes sure that a command would be taken.

    Args:
        words: of a simple command.
        run: a run folder, to stand in for those that the pages name.

    Raises:
        WrongError: it would not; the message says why.
    """
    try:
        _check(words, run)
    except HydraException as error:
        raise WrongError(f"{shlex.join(words)}: {hydra_message(error)}") from error
    except (ValueError, OSError, AssertionError) as error:
        raise WrongError(f"{shlex.join(words)}: {error}") from error


def _check(words, run):
    while "=" in words[0] and not words[0].startswith("-"):
        name = words[0].partition("=")[0]
        assert _named(name), f"nothing reads {name}"
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    program, *arguments = words
    cut = "..." in arguments
    arguments = [one for one in arguments if one != "..."]
    if program == "python" and arguments[0] == "-m":
        module, *arguments = arguments[1:]
        assert module.startswith("e2net.") and module[6:] in PROGRAMS, f"there is no program {module}"
        _run(module[6:], arguments, run, cut)
    elif program == "python" and arguments[0] in ("train.py", "eval.py"):
        _run(arguments[0][:-3], arguments[1:], run, cut)
    elif program == "python":
        _check_script(arguments[0], arguments[1:])
    elif program == "e2net":
        assert arguments[0] in (*PROGRAMS, "--help", "--version", "NAME"), f"there is no program {arguments[0]}"
        if arguments[0] in PROGRAMS:
            _run(arguments[0], arguments[1:], run, cut)
    else:
        assert program in _OTHERS, f"unknown program {program}; say in tests/docs/commands.py how it is checked"
        _OTHERS[program](arguments, run)


def _run(name, arguments, run, cut):
    """One of e2net's own programs."""
    if {"--help", "-h"} & set(arguments) or not arguments:
        return  # its help, or a program that is merely named
    if any(re.search(r"\bmine[./]", one) for one in arguments):
        return  # of CONTRIBUTING, whose page has the files for it and a test of its own
    if name == "features":
        if arguments and arguments[0] not in ("VERB", "--help"):
            _check_settings(f"features {arguments[0]}", arguments[1:], run, cut)
    elif name in settings.PROGRAMS:
        _check_settings(name, arguments, run, cut)
    else:
        kept = [one for one in arguments if one not in ("-m", "--cfg", "job")]
        assert len(kept) == len(arguments) or not any(one.startswith("-") for one in kept), "unknown option"
        _CHECKS[name](_first(kept) if "-m" in arguments else kept, run)


def _first(overrides):
    """The first job of a sweep; of the others' options it is looked up that there are any, which costs no composing."""
    chosen = []
    for one in overrides:
        key, _, text = one.partition("=")
        parsed = OverridesParser.create().parse_override(one)
        values = [str(value) for value in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [text]
        options = ROOT / "conf" / key
        if options.is_dir() and len(values) > 1:
            # Of encoders compare takes folders too.
            missing = [v for v in values if not (options / f"{v}.yaml").is_file() and "/" not in v]
            assert not missing, f"there is no {key}={missing[0]}"
            values = [value for value in values if "/" not in value]
        chosen.append(f"{key}={values[0]}")
    return chosen


def _check_train(overrides, run):
    _train(tuple(overrides), _mine(run))


@cache
def _train(overrides, mine):
    overrides = [one.replace("file://MINE", f"file://{mine}") for one in overrides]
    own = [one for one in overrides if not one.startswith(("hydra.", "+hydra.", "hydra/")) or "searchpath" in one]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        if any(one.startswith(("hydra.launcher", "hydra/")) for one in overrides):  # a whole Hydra takes its time
            compose("train", [*overrides, "run_dir=unused"], return_hydra_config=True)
        place = [] if any(one.startswith("run_dir=") for one in own) else ["run_dir=unused"]
        required = [f"{key}=unused" for key in _required("train", own)]
        config = resolve(compose("train", [*own, *place, *required]))
    check_training(config)
    patch = (config["encoder"].get("config") or {}).get("patch_size")
    sides = [config["size"]] if isinstance(config["size"], int) else config["size"]
    assert patch is None or all(side % patch == 0 for side in sides), f"size={sides} is no multiple of {patch}"


def _required(name, overrides):
    """Keys that the page leaves to what it said before: where the data lies, or the encoder."""
    given = {one.partition("=")[0].lstrip("+") for one in overrides}
    chosen = dict(one.split("=", 1) for one in overrides if "=" in one)
    wanted = []
    if chosen.get("data") in ("folder", "semantic", "pictures") or (name == "adapt" and "data" not in chosen):
        wanted.append("data.root")
    if chosen.get("encoder") == "local":
        wanted.append("encoder.path")
    return [key for key in wanted if key not in given]


def _check_eval(overrides, run):
    overrides = [f"ckpt={run}" if one.startswith("ckpt=") else one for one in overrides]
    if any(one.startswith("output=") for one in overrides):
        _eval(tuple(overrides))
    else:
        _eval((*overrides, "output=unused"))


@cache
def _eval(overrides):
    check_evaluation(compose_evaluation(overrides))


def _check_adapt(overrides, run):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        place = [] if any(one.startswith("run_dir=") for one in overrides) else ["run_dir=unused"]
        required = [f"{key}=unused" for key in _required("adapt", overrides)]
        config = resolve(compose("adapt", [*overrides, *place, *required]))
    del config["decoder"]
    check_adapting(config)


_CHECKS = {"train": _check_train, "eval": _check_eval, "adapt": _check_adapt}


def _check_settings(name, arguments, run, cut):
    """A program with settings of its own, and overrides of train.py's or eval.py's where it passes any on."""
    module, kind = settings.PROGRAMS[name]
    schema = getattr(importlib.import_module(module), kind)
    given = [f"ckpt={run}" if one.startswith("ckpt=") else one for one in arguments]
    if cut:
        needed = [one.name for one in fields(schema) if one.default is MISSING and one.name != "overrides"]
        given += [f"{key}=unused" for key in needed if not any(one.startswith(f"{key}=") for one in given)]
    read = read_settings(schema, given)
    if name == "export":
        _check_eval([f"ckpt={run}", *read.overrides], run)
    elif getattr(read, "overrides", ()):
        tokens = getattr(read, "tokens", None)
        if name == "compare" and not tokens and not any(one.startswith("size=") for one in read.overrides):
            tokens = 8  # it chooses as many for each encoder
        overrides = _first(read.overrides)
        _check_train([*overrides, *([f"size={tokens * _patch(overrides)}"] if tokens else [])], run)


def _patch(overrides):
    """Pixels a side of a patch of the encoder that is chosen."""
    name = next((one.partition("=")[2] for one in overrides if one.startswith("encoder=")), "tiny")
    option = yaml.safe_load((ROOT / "conf" / "encoder" / f"{name}.yaml").read_text(encoding="utf-8"))
    return option.get("config", {}).get("patch_size", 16)


class _ParsedError(Exception):
    pass


def _check_script(script, arguments):
    """A file that parses its arguments by argparse, as benchmarks do; stopped when it has."""
    assert (ROOT / script).is_file(), f"there is no file {script}"
    source = (ROOT / script).read_text(encoding="utf-8")
    if "argparse" not in source or not arguments:
        return
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *args, **kwargs):
        self.exit_on_error = False
        self.error = lambda message: (_ for _ in ()).throw(ValueError(message))
        parse(self, *args, **kwargs)
        raise _ParsedError

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parsed),
        mock.patch.object(sys, "argv", [script, *arguments]),
        mock.patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except _ParsedError:
            return
    raise ValueError(f"{script} has not parsed its arguments")


def _check_pip(arguments, run):
    assert arguments[0] in ("install", "wheel"), "of pip, install and wheel are checked"
    for one in arguments:
        if extras := re.search(r"\[([\w,]+)\]", one):
            missing = set(extras[1].split(",")) - set(_PROJECT["optional-dependencies"])
            assert not missing, f"there is no extra {missing}"


def _check_pytest(arguments, run):
    if "-m" in arguments:
        assert arguments.pop(arguments.index("-m") + 1) in ("", "slow")
    for one in arguments:
        assert one.startswith("-") or (ROOT / one).exists() or one.isdigit(), f"there is no {one}"


def _check_hf(arguments, run):
    if arguments[0] == "download":
        files = (ROOT / "conf" / "encoder").glob("*.yaml")
        paths = {yaml.safe_load(file.read_text(encoding="utf-8")).get("path") for file in files}
        assert arguments[1] in paths, f"no encoder has the path {arguments[1]}"
    else:
        assert arguments[:2] == ["auth", "login"], "of hf, download and auth login are checked"


def _check_docker(arguments, run):
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name in (one.partition("=")[0] for one in arguments if re.match(r"[A-Z_]+=", one)):
        assert f"ARG {name}" in dockerfile, f"the Dockerfile has no ARG {name}"
    if arguments[0] == "run":
        place = arguments.index("e2net")  # the image, whose command it is too
        _run(arguments[place + 1], arguments[place + 2 :], run, False)


def _check_curl(arguments, run):
    path = re.search(r"8000(/\w+)", " ".join(arguments))
    known = (ROOT / "e2net" / "serve" / "app.py").read_text(encoding="utf-8")
    assert path and f'"{path[1]}"' in known, "the server has no such path"


def _check_export(arguments, run):
    name = arguments[0].partition("=")[0]
    assert _named(name), f"nothing reads {name}"


def _check_srun(arguments, run):
    _check(arguments[next(i for i, one in enumerate(arguments) if not one.startswith("-")) :], run)


_OTHERS = {
    "pip": _check_pip,
    "pytest": _check_pytest,
    "hf": _check_hf,
    "docker": _check_docker,
    "curl": _check_curl,
    "srun": _check_srun,
    "export": _check_export,
    "pre-commit": lambda arguments, run: None,
    "cd": lambda arguments, run: None,
    "git": lambda arguments, run: None,
    "ruff": lambda arguments, run: None,
    "mypy": lambda arguments, run: None,
    "sphinx-build": lambda arguments, run: None,
}


@cache
def _named(name):
    """Whether anything in the code reads an environment variable."""
    if name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        return True
    files = [*(ROOT / "e2net").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    return any(name in file.read_text(encoding="utf-8") for file in files if file.parent != Path(__file__).parent)


@cache
def _mine(run):
    """A folder of options of one's own."""
    folder = Path(run).parent / "mine"
    (folder / "loss").mkdir(parents=True, exist_ok=True)
    (folder / "loss" / "mine.yaml").write_text((ROOT / "conf" / "loss" / "alpha.yaml").read_text("utf-8"), "utf-8")
    return folder
