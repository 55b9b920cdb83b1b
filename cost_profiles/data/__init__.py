"""The shipped profiles, one JSON file each; a package, because setuptools asks that of data folders."""
