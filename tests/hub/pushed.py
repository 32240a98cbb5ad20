"""The program of test_hub_push.py: ``pushed.py SAVED HOME``; what it has found is JSON in its last line."""

import json
import os
import sys

import fake_hub

saved, home = sys.argv[1:]


def refusal(call, *arguments, **options):
    """What a call that fails as a user's does says."""
    try:
        call(*arguments, **options)
    except (OSError, ValueError) as error:
        return str(error)
    return None


with fake_hub.running() as hub:
    # Before its client is imported, which reads them then.
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.pop("HF_TOKEN", None)
    import huggingface_hub.constants
    import numpy as np
    import torch

    from e2net import load
    from e2net.runs.checkpoint import find_checkpoint
    from e2net.runs.pretrained import saved_name

    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)

    def prediction(model):
        """Of one picture, as a number that is another one for every other map."""
        return float(np.square(model.predict(picture).prob, dtype=np.float64).sum())

    model = load(saved, "cpu")
    found = {"local": prediction(model), "no token": refusal(model.push_to_hub, "me/frogs")}
    os.environ["HF_TOKEN"] = fake_hub.TOKEN
    found["address"] = model.push_to_hub("me/frogs", private=True)
    found["first"] = prediction(load("me/frogs", "cpu"))
    with torch.no_grad():
        for parameter in model.model.decoder.parameters():
            parameter.mul_(2)
    found["changed"] = prediction(model)
    model.push_to_hub("me/frogs")
    found["second"] = prediction(load("me/frogs", "cpu"))
    commits = list(hub.commits["me/frogs"])
    found["first again"] = prediction(load(f"me/frogs@{commits[0]}", "cpu"))
    found["files"] = sorted(hub.commits["me/frogs"][commits[0]])
    found["private"], found["url"] = hub.private["me/frogs"], hub.url
    found["name"] = saved_name(find_checkpoint("me/frogs"))
    for name in ("me/nothing", "me/frogs@nowhere", "me/frogs/more", "runs/nothing"):
        hub.asked.clear()
        found[name] = [refusal(load, name, "cpu"), len(hub.asked)]
    hub.commits["me/encoder"] = {}
    hub.commit("me/encoder", {"config.json": b"{}"})
    found["no model"] = refusal(load, "me/encoder", "cpu")
huggingface_hub.constants.HF_HUB_OFFLINE = True  # as the variable would have set it, and the server is gone
found["offline"] = prediction(load("me/frogs", "cpu"))
found["offline, never fetched"] = refusal(load, "me/other", "cpu")
found["offline, to push"] = refusal(model.push_to_hub, "me/frogs")
print(json.dumps(found))
