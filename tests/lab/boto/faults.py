"""What boto3 makes of the lab's faults: its retries prove that they look like AWS's to a stranger."""

import json
import os
import sys
import unittest

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

LAB = json.loads(os.environ["LAB"])


def client(attempts, **config):
    return boto3.client(
        "ec2",
        endpoint_url=LAB["endpoint"],
        region_name=LAB["region"],
        aws_access_key_id="AKIALAB",
        aws_secret_access_key="secret",
        config=Config(retries={"mode": "standard", "total_max_attempts": attempts}, **config),
    )


class Faults(unittest.TestCase):
    def test_throttled_once(self):
        answer = client(3).describe_vpcs()
        self.assertEqual(answer["ResponseMetadata"]["RetryAttempts"], 1)

    def test_denied_is_not_retried(self):
        with self.assertRaises(ClientError) as caught:
            client(3).create_tags(Resources=["eni-0123456789abcdef0"], Tags=[{"Key": "k", "Value": "v"}])
        answer = caught.exception.response
        self.assertEqual(answer["Error"]["Code"], "UnauthorizedOperation")
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 403)
        self.assertEqual(answer["ResponseMetadata"]["RetryAttempts"], 0)

    def test_lost_answer_creates_once(self):
        answer = client(3).create_network_interface(SubnetId=LAB["subnet"], Description="lost")
        self.assertEqual(answer["ResponseMetadata"]["RetryAttempts"], 1)

    def test_lost_answer_without_retries(self):
        with self.assertRaises(ConnectionClosedError):
            client(1).describe_subnets()

    def test_slow_answer(self):
        with self.assertRaises(ReadTimeoutError):
            client(1, read_timeout=0.2).describe_security_groups()

    def test_bucket(self):
        codes = []
        for _ in range(6):
            try:
                client(1).describe_instances()
                codes.append("ok")
            except ClientError as error:
                codes.append(error.response["Error"]["Code"])
        self.assertEqual(codes, ["ok"] * 4 + ["RequestLimitExceeded"] * 2)


class Down(unittest.TestCase):
    def test_refused(self):
        with self.assertRaises(EndpointConnectionError):
            client(1).describe_vpcs()


if __name__ == "__main__":
    unittest.main(argv=sys.argv, verbosity=2)
