"""The `voxdiff` command, one file a subcommand."""
