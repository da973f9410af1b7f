"""Lines of a JSON-lines file that cannot be used, each for a reason of its own, and good ones between them."""

import json


def good(number: int) -> bytes:
    turns = [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\na"}]
    return json.dumps({"messages": turns, "id": number}).encode()


def turns(*pairs: tuple) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]}).encode()


def nested(levels: int) -> bytes:
    return b'{"messages": ' + b"[" * levels + b"]" * levels + b"}"


BROKEN = {
    "wrong type": b'{"messages": 5}',
    "missing keys": b'{"messages": [{"role": "user"}]}',
    "no columns": b"{}",
    "other columns": b'{"topic": "x"}',
    "invalid UTF-8": b'{"messages": "\xff\xfe"}',
    "null": b'{"messages": null}',
    "null content": turns(("user", "q"), ("assistant", None), ("user", "r")),
    "no messages": b'{"messages": []}',
    "wrong order": turns(("assistant", "a"), ("user", "q")),
    "two users": turns(("user", "q"), ("user", "r"), ("assistant", "a")),
    "late system": turns(("user", "q"), ("system", "s")),
    "unclosed thought": turns(("user", "q"), ("assistant", "<think>hm")),
    "unopened thought": turns(("user", "q"), ("assistant", "hm</think>a")),
    "NaN": b'{"prompt": "q", "think_loss": NaN}',
    "Infinity": b'{"prompt": "q", "think_loss": Infinity}',
    "deep": nested(100_000),
    "rather deep": nested(300),
    "lone surrogate": b'{"prompt": "q\\ud800"}',
    "truncated": good(1)[:-20],
    "array": b'[{"prompt": "q"}]',
    "number as content": turns(("user", 5)),
    "empty response": turns(("user", "q"), ("assistant", "")),
    "two answers": b'{"prompt": "q", "answer": "a", "solution": "b"}',
    "huge number": b'{"prompt": "q", "n": ' + b"9" * 5000 + b"}",
    "unknown role": turns(("wizard", "q")),
    "no image": b'{"prompt": "q", "images": [{"path": null}]}',
}
