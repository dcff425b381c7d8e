"""Reads the lab's IMDS with botocore's own fetchers, which a stranger wrote for AWS's."""

import json
import os
import socket
import unittest

import boto3
from botocore.utils import IMDSFetcher, IMDSRegionProvider, InstanceMetadataFetcher

LAB = json.loads(os.environ["LAB"])
IMDS = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]


class Imds(unittest.TestCase):
    def test_credentials_of_the_role(self):
        credentials = boto3.Session().get_credentials()
        self.assertEqual(credentials.method, "iam-role")
        frozen = credentials.get_frozen_credentials()
        self.assertTrue(frozen.access_key.startswith("ASIA"))
        self.assertTrue(frozen.secret_key and frozen.token)

    def test_calls_with_them(self):
        ec2 = boto3.client("ec2", endpoint_url=LAB["endpoint"], region_name=LAB["region"])
        self.assertEqual(len(ec2.describe_vpcs()["Vpcs"]), 1)

    def test_region(self):
        self.assertEqual(IMDSRegionProvider(boto3.Session()._session).provide(), LAB["region"])

    def test_role_name_list(self):
        fetcher = InstanceMetadataFetcher(base_url=IMDS)
        token = fetcher._fetch_metadata_token()
        self.assertEqual(fetcher._get_iam_role(token), "node-role")

    def test_the_tree_below_a_mac(self):
        fetcher = IMDSFetcher(base_url=IMDS)
        token = fetcher._fetch_metadata_token()

        def get(path):
            answer = fetcher._get_request(f"latest/meta-data/{path}", lambda _: False, token=token)
            return answer.status_code, answer.text

        status, mac = get("mac")
        self.assertEqual(status, 200)
        base = "network/interfaces/macs"
        self.assertIn(f"{mac}/", get(f"{base}/")[1].split())
        self.assertEqual(get(base), get(f"{base}/"))
        names = get(f"{base}/{mac}/")[1].split()
        for name in names:
            self.assertEqual(get(f"{base}/{mac}/{name}")[0], 200, name)
        self.assertNotIn("ipv4-prefix", names)
        self.assertEqual(get(f"{base}/{mac}/ipv4-prefix")[0], 404)
        self.assertEqual(get(f"{base}/{mac}/device-number"), (200, "0"))

    def test_hop_limit(self):
        host, port = IMDS.removeprefix("http://").rstrip("/").split(":")
        request = (
            b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
        )
        for least_ttl, arrives in ((1, True), (2, False)):
            with socket.create_connection((host, int(port)), timeout=0.5) as stream:
                # IP_MINTTL of linux/in.h: the kernel drops what comes with less.
                stream.setsockopt(socket.IPPROTO_IP, 21, least_ttl)
                stream.sendall(request)
                if arrives:
                    self.assertTrue(stream.recv(4096).startswith(b"HTTP/1.1 200"))
                    stream.setsockopt(socket.IPPROTO_IP, 21, 64)
                    stream.sendall(b"GET /latest/ HTTP/1.1\r\nHost: x\r\n\r\n")
                    self.assertTrue(stream.recv(4096).startswith(b"HTTP/1.1 401"))
                else:
                    with self.assertRaises(TimeoutError):
                        stream.recv(4096)


if __name__ == "__main__":
    unittest.main(verbosity=2)
