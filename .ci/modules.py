"""Import every module of the installed package, but those of hosts that are not here: nobody installs vLLM to test an import."""

import importlib
import pkgutil

import deltapack

HOSTS = ("vllm",)

names = [module.name for module in pkgutil.walk_packages(deltapack.__path__, "deltapack.") if not module.name.endswith("__main__")]
without = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in HOSTS:
            raise
        without.append(name)
print(len(names) - len(without), "modules of the installed package can be imported; not tried, as", *HOSTS, "is not here:", *without)
