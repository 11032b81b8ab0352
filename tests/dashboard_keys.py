"""Reads dashboards as grafana-foundation-sdk knows them, writes them again, and names every key that got lost.

The SDK drops what it does not know without a word, so a key that is missing in its output is one that Grafana does not
have: a slip of the pen that would show as nothing at all.
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(ours, theirs, path):
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            yield path
            return
        for key, value in ours.items():
            if key not in theirs:
                # An empty value may be left out by the encoder; it says nothing either way.
                if value not in (None, [], {}, "", False):
                    yield f"{path}.{key}"
            else:
                yield from lost(value, theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        if not isinstance(theirs, list) or len(theirs) != len(ours):
            yield path
            return
        for index, value in enumerate(ours):
            yield from lost(value, theirs[index], f"{path}[{index}]")


register_default_plugins()
failed = False
for file in sys.argv[1:]:
    with open(file, encoding="utf-8") as text:
        ours = json.load(text)
    theirs = json.loads(json.dumps(Dashboard.from_json(ours), cls=JSONEncoder))
    for place in lost(ours, theirs, ""):
        failed = True
        print(f"{file}: {place}")
sys.exit(failed)
