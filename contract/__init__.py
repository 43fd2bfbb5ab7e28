"""What every stage agrees on. Import the submodules; this package imports nothing itself."""
