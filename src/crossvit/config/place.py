"""Where the configs lie."""

from pathlib import Path

from crossvit.errors import UserError


def config_directory() -> Path:
    """`conf/`: beside the package in an installed wheel, at the top of a checkout otherwise.

    Raises UserError where neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "conf", package.parents[1] / "conf"):
        if (directory / "train.yaml").is_file():
            return directory
    raise UserError(f"no conf/train.yaml in {package} or {package.parents[1]}: install crossvit again")
