"""ms-swift's parser in a process of its own: a JSON list of words comes in on a line, what it reads goes out on one.

`typing` hands out one object for unions that differ in order alone, and transformers' parser looks at the order: what
another test imported before decides what it reads.
"""

import json
import sys

from swift_kd_plugin.cpu import switch_on

switch_on()

from swift.megatron.arguments.rlhf_args import MegatronRLHFArguments  # noqa: E402
from swift.utils.utils import _patch_get_type_hints  # noqa: E402
from transformers import HfArgumentParser  # noqa: E402

from swift_kd_plugin.host.arguments import extend_arguments  # noqa: E402

with _patch_get_type_hints():
    parser = HfArgumentParser([extend_arguments(MegatronRLHFArguments)])
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(vars(parser.parse_args(json.loads(line)))), flush=True)
