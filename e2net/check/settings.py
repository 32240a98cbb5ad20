"""The settings of ``python -m e2net.check``: our own keys; everything else is an override of ``conf/train.yaml``."""

from dataclasses import dataclass
from typing import Annotated

from e2net.arguments import refuse_overrides

USAGE = """\
Reads every picture and every target of the training, validation and test sets once, and says what is wrong or suspect.

  python -m e2net.check data=folder data.root=DIR
  python -m e2net.check data=semantic data.root=DIR task=semantic
  python -m e2net.check data=cod output=runs/check

Whatever is no setting below is an override of conf/train.yaml (see e2net train --help): give what you train with.
Only data and task are read. Sets that are not there are left out, and named.

  error     training stops at it, or is wrong: files that cannot be read, targets of another size, labels of no class,
            the same picture in the training set and in a test set
  warning   suspect: empty or inverted masks, near-duplicates across sets, the same picture twice in one
  note      right, but worth knowing: near-duplicates within a set, files that other programs may read otherwise

Writes OUT/check.json, all of it, and OUT/check.html, one page with thumbnails; nothing else in OUT is touched, and
nothing in the data.

Exit status: 0 no errors, 1 errors (with strict=true warnings as well), 2 a setting or the input is wrong.
"""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """All settings of one check, checked for their ranges.

    Attributes:
        overrides: of ``conf/train.yaml``, in Hydra's syntax.

    Raises:
        ValueError: a value is out of its range, or an override decides what this program decides.
    """

    output: Annotated[str | None, "folder of the report; null: runs/check_<time>"] = None
    images: Annotated[int, "findings of each kind that the page shows with their pictures; 0: none"] = 12
    strict: Annotated[bool, "warnings too make the exit status 1"] = False
    threads: Annotated[int | None, "that read files; null: one for each core"] = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        others = [o for o in self.overrides if not o.startswith("hydra.searchpath=")]  # where one's own configs lie
        refuse_overrides(others, ("run_dir", "hydra"), "a check writes no run and has no sweep")
        if not 0 <= self.images <= 1000:
            raise ValueError(f"images={self.images}: expected 0 to 1000")
        if self.threads is not None and not 1 <= self.threads <= 256:
            raise ValueError(f"threads={self.threads}: expected 1 to 256")
