"""JSON files that tests change."""

import json


def edit(path, **changes):
    """Change some keys of a JSON file, which need not be there before."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
