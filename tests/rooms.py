"""The rooms of the package, and which each of them imports."""

# Small modules beside the rooms that every room may use: the rooms that each of them imports.
FRONT = {
    "console": "",
    "errors": "",
    "ledger": "",
    "version": "",
    "arguments": "losses",
    "teacher_arguments": "",
    "launcher": "",
    "requirements": "",
}
# room: the rooms that it imports
ROOMS = {
    "cli": "recipes host/start host/rows host/samples evaluation generation teacher data config",
    "recipes": "host/start host/train data config",
    "host/start": "host/train host/rows host/teacher generation data config",
    "host/train": "host/rollout host/teacher host/samples host/rows teacher losses memory data",
    "host/rollout": "host/teacher host/samples generation serving data teacher losses",
    "host/teacher": "host/samples generation serving data teacher losses",
    "host/samples": "generation data losses",
    "host/rows": "data config",
    "evaluation": "generation data config",
    "generation": "serving teacher data config",
    "data": "config",
    "teacher": "losses data",
    "config": "",
    "memory": "",
    "serving": "",
    "losses": "",
    "cpu": "",
}
