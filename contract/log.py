"""The logger that every stage warns through; the command line shows it on stderr."""

import logging

log = logging.getLogger("unetrt")
