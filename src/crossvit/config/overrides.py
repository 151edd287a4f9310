"""The words of a command line, as far as what they are about can be told without parsing them. Imports nothing."""


def override_key(override: str) -> str:
    """The key or group of an override without its prefix (+, ++, ~) and package: `+data@x=coco` gives `data`."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0].strip()


def override_root(override: str) -> str:
    """The outermost part of its key: `hydra` of `hydra/launcher=joblib` and of `hydra.job.name=a`."""
    return override_key(override).split(".")[0].split("/")[0]
