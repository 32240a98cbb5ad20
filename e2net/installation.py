"""Where the files of this installation lie: a checkout, or a wheel among other packages."""

from pathlib import Path

PACKAGE = Path(__file__).parent
# The folder to import this e2net from.
ROOT = PACKAGE.parent
# In a wheel it travels inside the package.
_CONF = (PACKAGE / "conf", ROOT / "conf")


def conf_folder() -> Path:
    """The folder of config files.

    Raises:
        FileNotFoundError: e2net was installed without them.
    """
    for folder in _CONF:
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"expected conf/ with train.yaml in {PACKAGE} or beside it, found none; install e2net by pip install, from "
        "a wheel or a checkout"
    )


def is_checkout() -> bool:
    """Whether this e2net is run from where its source lies, which need not be where it is installed."""
    return conf_folder() == _CONF[1]
