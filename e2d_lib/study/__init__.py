"""The study's machinery: chapters, runner, sweeps, the command line."""
