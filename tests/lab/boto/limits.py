"""Prints the networking limits of moto's instance types, one line each, sorted."""

import gzip
import json
from importlib.resources import files

data = files("moto.ec2") / "resources"
plain, packed = data / "instance_types.json", data / "instance_types.json.gz"
text = plain.read_text() if plain.is_file() else gzip.decompress(packed.read_bytes()).decode()
for name, kind in sorted(json.loads(text).items()):
    network = kind.get("NetworkInfo", {})
    cards = network.get("NetworkCards", [])
    print(
        name,
        network.get("Ipv4AddressesPerInterface"),
        kind.get("Hypervisor", "unknown"),
        str(kind.get("BareMetal", False)).lower(),
        ";".join(f"{card['NetworkCardIndex']}:{card['MaximumNetworkInterfaces']}" for card in cards),
        network.get("DefaultNetworkCardIndex", 0),
        network.get("MaximumNetworkInterfaces"),
        sep=",",
    )
