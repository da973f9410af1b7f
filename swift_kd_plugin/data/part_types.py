"""Types of the parts of a content: those that are read, and what is given in place of others."""

from typing import Any

from swift_kd_plugin.data.values import shown

# By a part of another tool's turn: what is to be given in its place.
TEXT_PART, IMAGE_PART = '{"type": "text", "text": ...}', '{"type": "image", "image": ...}'
INSTEAD_OF_PARTS = {
    **dict.fromkeys(("output_text", "input_text"), TEXT_PART),
    **dict.fromkeys(("input_image", "output_image"), IMAGE_PART),
    **dict.fromkeys(("reasoning", "thinking", "summary_text"), "reasoning_content beside the content"),
    **dict.fromkeys(("tool_use", "tool_call", "function_call"), "tool_calls beside the content"),
    **dict.fromkeys(("tool_result", "function_call_output"), "a turn of the role tool"),
    "refusal": "refusal beside the content",
}
MEDIA_PARTS = ("image", "image_url", "video", "video_url", "audio", "audio_url")


def why_no_part(kind: Any) -> str:
    """The end of a sentence on a part whose type is none of those that are read."""
    if not isinstance(kind, str):
        return f"no type, not text or one of {', '.join(MEDIA_PARTS)}"
    if kind in INSTEAD_OF_PARTS:
        return f"the type {kind!r}; give it as {INSTEAD_OF_PARTS[kind]}"
    return f"the type {shown(kind)}, not text or one of {', '.join(MEDIA_PARTS)}"
