"""The entry point: torch calls `autoload()` at the end of `import torch` (entry point group `torch.backends`).

Without the plugin's name on the command line and without SWIFT_KD_DEVICE it returns at once and changes nothing.
"""

import os
import sys

PLUGIN = "swift_kd_plugin"
PLUGIN_FLAGS = ("--external_plugins", "--external-plugins", "--custom_register_path", "--custom-register-path")
DEVICE_VARIABLE = "SWIFT_KD_DEVICE"
# Commands of ms-swift that drive vLLM themselves: they know CPUs and must see the machine as it is.
SERVER_COMMANDS = ("deploy.py", "rollout.py", "infer.py", "app.py", "eval.py", "sample.py", "web_ui.py")
# Subcommands of swift-kd that do so, too.
OWN_SERVER_COMMANDS = (["generate"], ["eval"])


def autoload() -> None:
    named, device = is_named(sys.argv), os.environ.get(DEVICE_VARIABLE) or None
    if not named and device is None:
        return
    if is_launcher():
        if named:
            _prepare_launcher()
        return
    if device is not None:
        _switch_device(device)
    if named:
        _wake()


def is_named(argv: list[str]) -> bool:
    """Whether the command line names the plugin after --external_plugins, directly or in a YAML or JSON file."""
    in_plugin_flag = False
    for argument in argv[1:]:
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
            in_plugin_flag = flag in PLUGIN_FLAGS
            if in_plugin_flag and value == PLUGIN:
                return True
        elif in_plugin_flag and argument == PLUGIN:
            return True
    plugins = read_config_file(argv).get("external_plugins") or []
    return PLUGIN in ([plugins] if isinstance(plugins, str) else plugins)


def read_config_file(argv: list[str]) -> dict:
    """The file of `megatron rlhf run.yaml`, or an empty dict. Only this outer process sees it; its children get flags.

    Stops with one sentence if the file is not valid.
    """
    if len(argv) < 3 or os.path.basename(argv[0]) != "megatron":
        return {}
    if not argv[2].endswith((".yaml", ".yml", ".json")) or not os.path.isfile(argv[2]):
        return {}
    import json

    import yaml

    kind, read = ("JSON", json.load) if argv[2].endswith(".json") else ("YAML", yaml.safe_load)
    try:
        with open(argv[2], encoding="utf-8") as file:
            config = read(file)
    except (yaml.YAMLError, ValueError) as error:
        from swift_kd_plugin.errors import stop

        stop(f"{argv[2]} is not valid {kind}: {' '.join(str(error).split())}.")
    return config if isinstance(config, dict) else {}


def is_launcher() -> bool:
    """True in `megatron` and `torchrun`, which only start other processes; the ranks do the work."""
    return "torch.distributed.run" in sys.orig_argv[:4] or os.path.basename(sys.argv[0]) in ("megatron", "torchrun")


def _prepare_launcher() -> None:
    from swift_kd_plugin.errors import report_failed_ranks

    check_command_line(sys.argv)
    sys.excepthook = report_failed_ranks
    if os.path.basename(sys.argv[0]) == "megatron":
        from swift_kd_plugin.launcher import end_ranks_with_launcher

        end_ranks_with_launcher()
    _open_log()


def _open_log() -> None:
    from swift_kd_plugin.console import open_log
    from swift_kd_plugin.errors import on_failure, report_single_rank
    from swift_kd_plugin.host.train.run_record import write_failure_of_launch
    from swift_kd_plugin.launcher import environment_of, words_of

    config = read_config_file(sys.argv)
    by_torchrun = os.path.basename(sys.argv[0]) != "megatron"
    env = os.environ if by_torchrun else environment_of(config)
    script = os.path.join("_megatron", "rlhf.py")
    if any(word.endswith(script) for word in sys.argv) if by_torchrun else sys.argv[1:2] == ["rlhf"]:
        words = sys.argv if by_torchrun else words_of(sys.argv, config)
        open_log(words)
        on_failure.append(write_failure_of_launch)
        if not by_torchrun and not env.keys() & {"NPROC_PER_NODE", "NNODES"}:
            report_single_rank()


def check_command_line(argv: list[str]) -> None:
    """Stops with one sentence if the ranks that a launcher is about to start could not work."""
    from swift_kd_plugin.launcher import check_launch, environment_of, words_of

    config = read_config_file(argv)
    check_launch(argv, config)
    if os.path.basename(argv[0]) == "megatron" and argv[1:2] == ["rlhf"]:
        from swift_kd_plugin.errors import KDError, stop
        from swift_kd_plugin.host.start.launch_checks import check_command

        try:
            check_command(words_of(argv, config), environment_of(config), argv[2] if config else "", config)
        except KDError as error:
            stop(str(error))


def _switch_device(device: str) -> None:
    from swift_kd_plugin.errors import stop

    command = os.path.basename(sys.argv[0])
    if device == "cuda" or command in SERVER_COMMANDS:
        return
    if device != "cpu":
        stop(f"{DEVICE_VARIABLE}={device!r} is not known; use cpu (no GPU needed) or cuda (the default).")
    from swift_kd_plugin.cpu import set_environment, switch_on

    if command == "swift-kd" and sys.argv[1:2] in OWN_SERVER_COMMANDS:
        set_environment()
    else:
        switch_on()


def _wake() -> None:
    import swift_kd_plugin
    from swift_kd_plugin.console import split_rank
    from swift_kd_plugin.errors import report_and_exit, stop
    from swift_kd_plugin.launcher import act_as_single_process, is_megatron_rank, refuse_other_trainers, refuse_ray
    from swift_kd_plugin.ledger import when_imported
    from swift_kd_plugin.requirements import find_unsupported, quiet_bitsandbytes

    sys.excepthook = report_and_exit
    quiet_bitsandbytes()
    if is_megatron_rank(sys.argv):
        split_rank(sys.argv)
    problem = find_unsupported()
    if problem:
        stop(problem)
    refuse_other_trainers(sys.argv)
    if is_megatron_rank(sys.argv):
        act_as_single_process()
    when_imported("swift.ray.megatron", refuse_ray)
    swift_kd_plugin.install()


def refuse_without_autoload() -> None:
    """Called at interpreter start when TORCH_DEVICE_BACKEND_AUTOLOAD is off: then torch never calls `autoload()`."""
    if is_named(getattr(sys, "argv", [])):
        from swift_kd_plugin.errors import leave_at_once, print_error

        value = os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]
        print_error(
            f"TORCH_DEVICE_BACKEND_AUTOLOAD={value} keeps torch from loading the plugin; "
            "unset it (or set it to 1) and start again."
        )
        leave_at_once(1)
