"""What a run's own flags would refuse, said of the keys of a recipe before anything is started."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.host.start.launch_checks import check_kd_flags
from swift_kd_plugin.host.start.megatron_flags import megatron_defaults
from swift_kd_plugin.recipes.shell_command import Where

LISTS = ("kd_teacher_adapters", "adapters")


def check_flags(keys: Mapping[str, Any], where: Where) -> None:
    """Raises KDError for values out of their range and keys that contradict one another, with file and key.

    Args:
        keys: of known names and types; another stage's model stands for itself.
        where: the place of a key in words.
    """
    flags = {name: value for name, value in keys.items() if value is not None}
    flags |= {name: [flags[name]] for name in LISTS if isinstance(flags.get(name), str)}
    try:
        check_kd_flags(Namespace(**megatron_defaults() | {"rlhf_type": "gkd"} | flags))
    except KDError as error:
        named = [name for name in re.findall(r"--(\w+)", str(error)) if name in keys]
        place = where(named[0]) if named else where("lmbda")
        raise KDError(f"{place}: {error}") from error
