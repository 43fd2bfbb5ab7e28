"""One file a verb: arguments in, one call, message out."""
