#!/usr/bin/python3 -I
"""A program for Farrier: flags, each a small file in one folder.

A step's input is {"name": NAME, "value": VALUE}, and a value of null removes the flag. The environment's
settings name the folder: {"folder": "/var/lib/flags"}. The manual's page on programs explains every line.
"""

import hashlib
import json
import os
import re
import sys


class Failed(Exception):
    """What goes back as {"failed": …}."""

    def __init__(self, kind, message, **more):
        self.told = {"kind": kind, "message": message, **more}


def say(line):
    print(json.dumps(line), flush=True)


def path_of(request, name):
    folder = request["settings"].get("folder")
    if not folder:
        raise Failed("input", "the environment's settings name no `folder`")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
        raise Failed("input", "`name` is not the name of a flag")
    return os.path.join(folder, name)


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, value):
    if value is None:
        os.unlink(path)
        return
    # Whole or not there: a crash in the middle leaves the old file.
    with open(path + ".next", "w", encoding="utf-8") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".next", path)


def shown(value):
    return None if value is None else {"value": value}


def plan(request):
    unknown = set(request["input"]) - {"name", "value"}
    if unknown:
        raise Failed("input", f"unknown: {', '.join(sorted(unknown))}")
    name, wanted = request["input"].get("name"), request["input"].get("value")
    if wanted is not None and not isinstance(wanted, str):
        raise Failed("input", "`value` is neither text nor null")
    now = read(path_of(request, name))
    changes = []
    if now != wanted:
        kind = "create" if now is None else "delete" if wanted is None else "update"
        changes = [{"object": f"flag {name}", "kind": kind, "before": shown(now), "after": shown(wanted)}]
    digest = hashlib.sha256((wanted or "").encode()).hexdigest()
    return {"planned": {"changes": changes, "output": {"sha256": digest}, "fidelity": "computed", "considered": 1}}


def move(request, start, end):
    """Every change from one side to the other, if it is still on the first one."""
    for change in request["changes"]:
        path = path_of(request, change["object"].removeprefix("flag "))
        now, goal = shown(read(path)), change[end]
        if now == goal:
            continue  # done before a crash
        if now != change[start]:
            raise Failed("drift", f"{change['object']} is not as it was")
        write(path, goal and goal["value"])


def apply(request):
    move(request, "before", "after")
    wanted = request["input"].get("value") or ""
    return {"applied": {"output": {"sha256": hashlib.sha256(wanted.encode()).hexdigest()}}}


def undo(request):
    move(request, "after", "before")
    return {"undone": {}}


def probe(request):
    def all_are(side):
        return all(
            shown(read(path_of(request, change["object"].removeprefix("flag ")))) == change[side]
            for change in request["changes"]
        )

    return {"probed": "applied" if all_are("after") else "not_applied" if all_are("before") else "unknown"}


def main():
    request = json.loads(sys.stdin.readline())
    try:
        if request["farrier"] != 1:
            raise Failed("input", f"this program speaks version 1, not {request['farrier']}")
        say({"plan": plan, "apply": apply, "undo": undo, "probe": probe}[request["ask"]](request))
    except Failed as failed:
        say({"failed": failed.told})
    except OSError as error:
        # Whether something was changed is not known here, so it is left in doubt.
        say({"failed": {"kind": "unreachable", "message": str(error), "in_doubt": request["ask"] in ("apply", "undo")}})


main()
