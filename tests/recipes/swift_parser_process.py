"""ms-swift's parsers in a process of their own: a command and its words come in on a line as JSON, what is read goes
out on one.

`typing` hands out one object for unions that differ in order alone, and transformers' parser looks at the order: what
another test imported before decides what it reads.
"""

import json
import sys

from swift_kd_plugin.cpu import switch_on

switch_on()

from swift.arguments import DeployArguments, ExportArguments, InferArguments  # noqa: E402
from swift.megatron.arguments.rlhf_args import MegatronRLHFArguments  # noqa: E402
from swift.utils.utils import _patch_get_type_hints  # noqa: E402
from transformers import HfArgumentParser  # noqa: E402

from swift_kd_plugin.host.start.argument_class import extend_arguments  # noqa: E402

with _patch_get_type_hints():
    parsers = {
        "megatron rlhf": HfArgumentParser([extend_arguments(MegatronRLHFArguments)]),
        "swift deploy": HfArgumentParser([DeployArguments]),
        "swift export": HfArgumentParser([ExportArguments]),
        "swift infer": HfArgumentParser([InferArguments]),
    }
print("ready", flush=True)
for line in sys.stdin:
    command, words = json.loads(line)
    print(json.dumps(vars(parsers[command].parse_args(words))), flush=True)
