"""Import every module of the installed package: with the required dependencies alone, none may fail."""

import importlib
import pkgutil

import glassgpt

#: Modules that are an extra as a whole, and the library that it brings; they are imported where it was found.
EXTRAS = {"glassgpt.inference.kernels": "numba"}

names = [module.name for module in pkgutil.walk_packages(glassgpt.__path__, "glassgpt.")]
names = [name for name in names if ".gallery.programs." not in name and not name.endswith("__main__")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if EXTRAS.get(name) != error.name:
            raise
print(f"imported {len(names)} modules")
