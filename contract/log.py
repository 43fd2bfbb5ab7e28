"""The logger that every stage warns through; the command line shows it on stderr."""

import logging
import sys
import warnings

log = logging.getLogger("unetrt")


def quiet_readers() -> None:
    """Pillow warns of files, without their names, that are told by name. -W shows it again."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"PIL\.")
