"""The colocated vLLM engine of a trainer."""


def close_engine(trainer) -> None:
    """Shuts the trainer's colocated vLLM engine down; a trainer without one is left alone.

    vLLM also destroys the default process group, so this is a rank's last step. Left to the interpreter's exit, it
    would come after ms-swift has destroyed the groups and end with "Invalid process group specified".
    """
    engine = getattr(trainer, "engine", None)
    if engine is not None:
        engine.engine.engine_core.shutdown()
