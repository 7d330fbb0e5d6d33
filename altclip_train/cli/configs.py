"""``altclip ls`` and ``altclip cp``: what there is to choose from, and a copy of it to change."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from altclip_train.configuration import nearest

Tools = argparse._SubParsersAction

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What is listed, and how a command chooses it.
GROUPS = {
    "stage": ("stages", "stage=NAME"),
    "model": ("models: sizes of towers from random weights", "model=NAME"),
    "experiment": ("experiments: whole recipes", "experiment=NAME"),
    "eval": ("benchmarks: `altclip data fetch-help NAME` tells files, licence, protocol and traps", "'eval=[NAME]'"),
    "strategy": ("strategies: how weights lie on several devices", "strategy=NAME"),
    "callbacks": ("callbacks", "callbacks=NAME"),
    "logger": ("loggers", "logger=NAME"),
}


def add(tools: Tools) -> None:
    """Add ``ls`` and ``cp`` to the tools of ``altclip``."""
    summary = "what stages, models, experiments, benchmarks, strategies, callbacks and loggers there are"
    listing = tools.add_parser("ls", help=summary, description=summary[0].upper() + summary[1:] + ".")
    listing.add_argument("groups", nargs="*", metavar="KIND", help=f"of {', '.join(GROUPS)} (default: all)")
    listing.set_defaults(run=_list)
    copy = tools.add_parser(
        "cp",
        help="copy an experiment, or another configuration, to change it",
        description="Copy a configuration. A name without a folder is put beside the original; any other place must be "
        "a folder of the original's kind, such as mine/experiment/my.yaml, to be found by --config-dir mine.",
    )
    copy.add_argument("name", metavar="NAME", help="an experiment, or KIND/NAME, such as model/starter")
    copy.add_argument("target", metavar="FILE", help="such as my.yaml; must not exist")
    copy.set_defaults(run=_copy)


def summary_of(file: Path) -> str:
    """The first comment of a YAML file that is no Hydra directive."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@")), "")


def _files(group: str) -> dict[str, Path]:
    if not CONFIGS.is_dir():
        raise FileNotFoundError(f"{CONFIGS} is not there: run this in a checkout, installed by pip install -e .")
    return {file.stem: file for file in sorted((CONFIGS / group).glob("*.yaml"))}


def _list(options: argparse.Namespace) -> None:
    for group in options.groups or GROUPS:
        if group not in GROUPS:
            raise ValueError(
                f"{group!r} is no kind of configuration{nearest(group, GROUPS)} Known: {', '.join(GROUPS)}"
            )
        title, choice = GROUPS[group]
        files = _files(group)
        width = max(map(len, files))
        print(
            f"{title} ({choice})", *(f"  {name:{width}}  {summary_of(file)}" for name, file in files.items()), sep="\n"
        )


def _copy(options: argparse.Namespace) -> None:
    group, _, name = options.name.rpartition("/")
    group = group or "experiment"
    if group not in GROUPS or name not in (files := _files(group)):
        known = [f"{one}/{file}" for one in GROUPS for file in _files(one)]
        raise ValueError(f"there is no {group}/{name}{nearest(f'{group}/{name}', known)} `altclip ls` lists all")
    target = Path(options.target)
    target = files[name].parent / target if target.parent == Path() else target
    if target.suffix != ".yaml" or target.parent.name != group:
        raise ValueError(f"{target}: expected a name that ends in .yaml, alone or in a folder {group}/")
    if target.exists():
        raise FileExistsError(f"{target} is there already: give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[name], target)
    beside = target.parent.resolve() == files[name].parent
    where = "" if beside else f"--config-dir {target.parent.parent} "
    choice = GROUPS[group][1].replace("NAME", target.stem)
    print(f"written to {target}\nuse it: python train.py {where}{choice}")
