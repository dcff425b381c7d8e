"""Drives every action of the lab's EC2 endpoint with boto3, which shares no code and no reading with us."""

import ipaddress
import json
import os
import time
import unittest

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

LAB = json.loads(os.environ["LAB"])
OWNER = "node.k8s.amazonaws.com/instance_id"


def client(**more):
    return boto3.client(
        "ec2",
        endpoint_url=LAB["endpoint"],
        region_name=LAB["region"],
        aws_access_key_id="AKIALAB",
        aws_secret_access_key="secret",
        config=Config(retries={"max_attempts": 0}, **more),
    )


EC2 = client()
# The endpoint's own checks are meant, not those that the client makes before it sends anything.
UNCHECKED = client(parameter_validation=False)


class Case(unittest.TestCase):
    def refused(self, code, call, message=None, status=400, **params):
        with self.assertRaises(ClientError) as caught:
            call(**params)
        answer = caught.exception.response
        self.assertEqual(answer["Error"]["Code"], code, answer["Error"])
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], status)
        self.assertRegex(answer["ResponseMetadata"]["RequestId"], r"^[0-9a-f-]{36}$")
        if message is not None:
            self.assertEqual(answer["Error"]["Message"], message)

    def create(self, subnet="nodes", **params):
        params.setdefault("Groups", [LAB["group"]])
        answer = EC2.create_network_interface(SubnetId=LAB["subnets"][subnet], **params)
        eni = answer["NetworkInterface"]
        self.addCleanup(self.discard, eni["NetworkInterfaceId"])
        return eni

    def discard(self, eni):
        try:
            attachment = self.show(eni).get("Attachment")
            if attachment:
                EC2.detach_network_interface(AttachmentId=attachment["AttachmentId"])
                self.until(eni, lambda shown: "Attachment" not in shown)
            EC2.delete_network_interface(NetworkInterfaceId=eni)
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidNetworkInterfaceID.NotFound":
                raise

    def show(self, eni):
        answer = EC2.describe_network_interfaces(NetworkInterfaceIds=[eni])
        self.assertEqual(len(answer["NetworkInterfaces"]), 1)
        return answer["NetworkInterfaces"][0]

    def until(self, eni, condition):
        deadline = time.monotonic() + 30
        while not condition(self.show(eni)):
            self.assertLess(time.monotonic(), deadline, self.show(eni))
            time.sleep(0.01)
        return self.show(eni)


def secondaries(eni):
    return [entry["PrivateIpAddress"] for entry in eni["PrivateIpAddresses"] if not entry["Primary"]]


class Describes(Case):
    def test_vpcs(self):
        (vpc,) = EC2.describe_vpcs(VpcIds=[LAB["vpc"]])["Vpcs"]
        self.assertEqual(vpc["CidrBlock"], "10.0.0.0/16")
        cidrs = [entry["CidrBlock"] for entry in vpc["CidrBlockAssociationSet"]]
        self.assertEqual(cidrs, ["10.0.0.0/16", "100.64.0.0/16"])
        self.assertEqual(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlockState"]["State"], "associated")
        self.refused(
            "InvalidVpcID.NotFound",
            EC2.describe_vpcs,
            "The vpc ID 'vpc-0123456789abcdef0' does not exist",
            VpcIds=["vpc-0123456789abcdef0"],
        )

    def test_subnets(self):
        filters = [
            {"Name": "vpc-id", "Values": [LAB["vpc"]]},
            {"Name": "availability-zone", "Values": [LAB["zone"]]},
        ]
        found = EC2.describe_subnets(Filters=filters)["Subnets"]
        self.assertEqual({subnet["SubnetId"] for subnet in found}, set(LAB["subnets"].values()))
        tiny = next(subnet for subnet in found if subnet["SubnetId"] == LAB["subnets"]["tiny"])
        self.assertEqual((tiny["CidrBlock"], tiny["AvailableIpAddressCount"]), ("10.0.8.0/28", 11))
        self.assertEqual(EC2.describe_subnets(Filters=[{"Name": "tag:x", "Values": ["y"]}])["Subnets"], [])
        self.refused("InvalidSubnetID.Malformed", EC2.describe_subnets, SubnetIds=["subnet-xyz"])
        self.refused(
            "InvalidParameterValue",
            EC2.describe_subnets,
            "The filter 'no-such' is invalid",
            Filters=[{"Name": "no-such", "Values": ["x"]}],
        )

    def test_security_groups(self):
        (group,) = EC2.describe_security_groups(GroupIds=[LAB["group"]])["SecurityGroups"]
        self.assertEqual((group["GroupName"], group["VpcId"]), ("nodes", LAB["vpc"]))
        by_name = [{"Name": "group-name", "Values": ["nod*"]}]
        self.assertEqual(len(EC2.describe_security_groups(Filters=by_name)["SecurityGroups"]), 1)
        self.refused(
            "InvalidGroup.NotFound", EC2.describe_security_groups, GroupIds=["sg-0123456789abcdef0"]
        )

    def test_instance_types(self):
        (kind,) = EC2.describe_instance_types(InstanceTypes=["p4d.24xlarge"])["InstanceTypes"]
        network = kind["NetworkInfo"]
        self.assertEqual(network["MaximumNetworkInterfaces"], 60)
        self.assertEqual(network["MaximumNetworkCards"], 4)
        self.assertEqual(network["Ipv4AddressesPerInterface"], 50)
        self.assertEqual([card["NetworkCardIndex"] for card in network["NetworkCards"]], [0, 1, 2, 3])
        self.assertEqual(kind["Hypervisor"], "nitro")
        self.refused("InvalidInstanceType", EC2.describe_instance_types, InstanceTypes=["x9.huge"])
        pages = EC2.get_paginator("describe_instance_types").paginate(MaxResults=100)
        names = [kind["InstanceType"] for page in pages for kind in page["InstanceTypes"]]
        self.assertGreater(len(names), 1300)
        self.assertEqual(len(names), len(set(names)))

    def test_instances(self):
        node = LAB["nodes"]["m5.large"]
        (reservation,) = EC2.describe_instances(InstanceIds=[node])["Reservations"]
        (instance,) = reservation["Instances"]
        self.assertEqual(instance["State"], {"Code": 16, "Name": "running"})
        self.assertEqual(instance["InstanceType"], "m5.large")
        self.assertEqual(instance["MetadataOptions"]["HttpTokens"], "required")
        primary = instance["NetworkInterfaces"][0]
        self.assertEqual(primary["Attachment"]["DeviceIndex"], 0)
        self.assertEqual(primary["Attachment"]["Status"], "attached")
        self.assertEqual(primary["PrivateIpAddress"], instance["PrivateIpAddress"])
        self.refused(
            "InvalidInstanceID.NotFound",
            EC2.describe_instances,
            "The instance IDs 'i-0123456789abcdef0, i-0123456789abcdef1' do not exist",
            InstanceIds=["i-0123456789abcdef0", "i-0123456789abcdef1"],
        )
        self.refused("InvalidInstanceID.Malformed", EC2.describe_instances, InstanceIds=["web"])

    def test_interfaces_in_pages(self):
        created = {self.create(Description=f"page {n}")["NetworkInterfaceId"] for n in range(12)}
        wanted = [{"Name": "description", "Values": ["page *"]}]
        paginator = EC2.get_paginator("describe_network_interfaces")
        pages = list(paginator.paginate(Filters=wanted, PaginationConfig={"PageSize": 5}))
        self.assertEqual([len(page["NetworkInterfaces"]) for page in pages], [5, 5, 2])
        seen = {eni["NetworkInterfaceId"] for page in pages for eni in page["NetworkInterfaces"]}
        self.assertEqual(seen, created)
        self.refused("InvalidParameterValue", UNCHECKED.describe_network_interfaces, MaxResults=4)
        self.refused("InvalidParameterValue", UNCHECKED.describe_network_interfaces, MaxResults=1001)
        self.refused(
            "InvalidNextToken", EC2.describe_network_interfaces, MaxResults=5, NextToken="what?"
        )
        self.refused(
            "InvalidParameterCombination",
            EC2.describe_network_interfaces,
            MaxResults=5,
            NetworkInterfaceIds=sorted(created),
        )

    def test_interfaces_by_filter(self):
        tag = {"Key": OWNER, "Value": "i-filter"}
        spec = [{"ResourceType": "network-interface", "Tags": [tag]}]
        eni = self.create(Description="aws-K8S-i-filter", TagSpecifications=spec)
        own = eni["NetworkInterfaceId"]
        for name, value in {
            f"tag:{OWNER}": "i-filter",
            "network-interface-id": own,
            "description": "aws-K8S-i-f*",
            "private-ip-address": eni["PrivateIpAddress"],
            "mac-address": eni["MacAddress"],
        }.items():
            answer = EC2.describe_network_interfaces(Filters=[{"Name": name, "Values": [value]}])
            self.assertEqual([e["NetworkInterfaceId"] for e in answer["NetworkInterfaces"]], [own], name)
        leaked = [
            {"Name": "tag-key", "Values": [OWNER]},
            {"Name": "status", "Values": ["available"]},
            {"Name": "vpc-id", "Values": [LAB["vpc"]]},
            {"Name": "subnet-id", "Values": [LAB["subnets"]["nodes"]]},
            {"Name": "availability-zone", "Values": [LAB["zone"], "elsewhere"]},
        ]
        answer = EC2.describe_network_interfaces(Filters=leaked)
        self.assertEqual([e["NetworkInterfaceId"] for e in answer["NetworkInterfaces"]], [own])
        stars = [{"Name": f"tag:{OWNER}", "Values": ["i-filte\\*"]}]
        self.assertEqual(EC2.describe_network_interfaces(Filters=stars)["NetworkInterfaces"], [])
        crowd = [{"Name": "network-interface-id", "Values": [f"eni-{n:017x}" for n in range(201)]}]
        self.refused(
            "FilterLimitExceeded",
            EC2.describe_network_interfaces,
            "The maximum number of filter values specified on a single call is 200",
            Filters=crowd,
        )
        leaked[1]["Values"] = ["in-use"]
        self.assertEqual(EC2.describe_network_interfaces(Filters=leaked)["NetworkInterfaces"], [])
        mine = [{"Name": "attachment.instance-id", "Values": [LAB["nodes"]["m5.large"]]}]
        answer = EC2.describe_network_interfaces(Filters=mine)["NetworkInterfaces"]
        self.assertEqual([e["Attachment"]["DeviceIndex"] for e in answer], [0])
        self.refused(
            "InvalidParameterValue",
            EC2.describe_network_interfaces,
            "The filter 'attachment.instance' is invalid",
            Filters=[{"Name": "attachment.instance", "Values": ["x"]}],
        )


class Lifecycle(Case):
    def test_create_attach_modify_detach_delete(self):
        node = LAB["nodes"]["m5.large"]
        tags = [{"Key": OWNER, "Value": node}, {"Key": "a&b", "Value": "<c> \"d\" é"}]
        eni = self.create(
            Description=f"aws-K8S-{node}",
            SecondaryPrivateIpAddressCount=9,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
        )
        own = eni["NetworkInterfaceId"]
        self.assertRegex(own, r"^eni-[0-9a-f]{17}$")
        self.assertRegex(eni["MacAddress"], r"^0a(:[0-9a-f]{2}){5}$")
        self.assertEqual((eni["Status"], eni["InterfaceType"]), ("available", "interface"))
        self.assertEqual(len(secondaries(eni)), 9)
        self.assertEqual({t["Key"]: t["Value"] for t in eni["TagSet"]}, {t["Key"]: t["Value"] for t in tags})
        self.assertEqual(eni["Groups"], [{"GroupId": LAB["group"], "GroupName": "nodes"}])
        attached = EC2.attach_network_interface(
            InstanceId=node, NetworkInterfaceId=own, DeviceIndex=1, NetworkCardIndex=0
        )
        attachment = attached["AttachmentId"]
        self.assertRegex(attachment, r"^eni-attach-[0-9a-f]{17}$")
        shown = self.until(own, lambda e: e["Attachment"]["Status"] == "attached")
        self.assertEqual(shown["Attachment"]["AttachmentId"], attachment)
        self.assertEqual(shown["Attachment"]["InstanceId"], node)
        self.assertFalse(shown["Attachment"]["DeleteOnTermination"])
        EC2.modify_network_interface_attribute(
            NetworkInterfaceId=own,
            Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
        )
        EC2.modify_network_interface_attribute(NetworkInterfaceId=own, Description={"Value": "new"})
        EC2.modify_network_interface_attribute(NetworkInterfaceId=own, SourceDestCheck={"Value": False})
        EC2.modify_network_interface_attribute(NetworkInterfaceId=own, Groups=[LAB["other_group"]])
        shown = self.show(own)
        self.assertTrue(shown["Attachment"]["DeleteOnTermination"])
        self.assertEqual((shown["Description"], shown["SourceDestCheck"]), ("new", False))
        self.assertEqual([g["GroupId"] for g in shown["Groups"]], [LAB["other_group"]])
        EC2.create_tags(Resources=[own], Tags=[{"Key": "more", "Value": ""}])
        self.assertEqual(len(self.show(own)["TagSet"]), 3)
        self.refused(
            "InvalidParameterValue",
            EC2.delete_network_interface,
            f"Network interface '{own}' is currently in use.",
            NetworkInterfaceId=own,
        )
        EC2.detach_network_interface(AttachmentId=attachment)
        self.until(own, lambda e: e["Status"] == "available" and "Attachment" not in e)
        EC2.delete_network_interface(NetworkInterfaceId=own)
        self.refused(
            "InvalidNetworkInterfaceID.NotFound",
            EC2.describe_network_interfaces,
            f"The networkInterface ID '{own}' does not exist",
            NetworkInterfaceIds=[own],
        )
        self.refused("InvalidNetworkInterfaceID.NotFound", EC2.delete_network_interface, NetworkInterfaceId=own)
        self.refused("InvalidAttachmentID.NotFound", EC2.detach_network_interface, AttachmentId=attachment)

    def test_limits_of_the_instance(self):
        node = LAB["nodes"]["t3.medium"]
        for device in (1, 2):
            eni = self.create()["NetworkInterfaceId"]
            EC2.attach_network_interface(InstanceId=node, NetworkInterfaceId=eni, DeviceIndex=device)
        spare = self.create()["NetworkInterfaceId"]
        attach = EC2.attach_network_interface
        self.refused(
            "AttachmentLimitExceeded",
            attach,
            "Interface count 4 exceeds the limit for t3.medium",
            InstanceId=node,
            NetworkInterfaceId=spare,
            DeviceIndex=3,
        )
        self.refused(
            "InvalidParameterValue",
            attach,
            f"Instance '{node}' already has an interface attached at device index '2'.",
            InstanceId=node,
            NetworkInterfaceId=spare,
            DeviceIndex=2,
        )
        self.refused(
            "InvalidNetworkInterface.InUse",
            attach,
            f"Interface: [{eni}] in use.",
            InstanceId=LAB["nodes"]["m5.large"],
            NetworkInterfaceId=eni,
            DeviceIndex=2,
        )
        self.refused(
            "InvalidInstanceID.NotFound",
            attach,
            InstanceId="i-0123456789abcdef0",
            NetworkInterfaceId=spare,
            DeviceIndex=1,
        )

    def test_primary_stays(self):
        mine = [
            {"Name": "attachment.instance-id", "Values": [LAB["nodes"]["m5.large"]]},
            {"Name": "attachment.device-index", "Values": ["0"]},
        ]
        (primary,) = EC2.describe_network_interfaces(Filters=mine)["NetworkInterfaces"]
        self.refused(
            "OperationNotPermitted",
            EC2.detach_network_interface,
            AttachmentId=primary["Attachment"]["AttachmentId"],
        )

    def test_idempotency(self):
        first = self.create(ClientToken="token-1", Description="once")
        again = self.create(ClientToken="token-1", Description="once")
        self.assertEqual(first["NetworkInterfaceId"], again["NetworkInterfaceId"])
        self.refused(
            "IdempotentParameterMismatch",
            EC2.create_network_interface,
            SubnetId=LAB["subnets"]["nodes"],
            Groups=[LAB["group"]],
            ClientToken="token-1",
            Description="twice",
        )

    def test_dry_run(self):
        create = EC2.create_network_interface
        subnet = LAB["subnets"]["nodes"]
        self.refused("DryRunOperation", create, status=412, SubnetId=subnet, DryRun=True)
        self.refused("DryRunOperation", EC2.describe_vpcs, status=412, DryRun=True)

    def test_security_groups(self):
        create = EC2.create_network_interface
        subnet = LAB["subnets"]["nodes"]
        self.refused(
            "InvalidSecurityGroupID.NotFound", create, SubnetId=subnet, Groups=["sg-0123456789abcdef0"]
        )
        six = LAB["many_groups"]
        self.refused("SecurityGroupsPerInterfaceLimitExceeded", create, SubnetId=subnet, Groups=six)
        self.refused("InvalidSubnetID.NotFound", create, SubnetId="subnet-0123456789abcdef0")

    def test_connection_tracking(self):
        eni = self.create(ConnectionTrackingSpecification={"TcpEstablishedTimeout": 600})
        shown = self.show(eni["NetworkInterfaceId"])
        self.assertEqual(shown["ConnectionTrackingConfiguration"], {"TcpEstablishedTimeout": 600})
        for name, seconds in (("TcpEstablishedTimeout", 59), ("UdpStreamTimeout", 181), ("UdpTimeout", 29)):
            self.refused(
                "InvalidParameterValue",
                EC2.create_network_interface,
                SubnetId=LAB["subnets"]["nodes"],
                ConnectionTrackingSpecification={name: seconds},
            )

    def test_tags(self):
        create = EC2.create_tags
        one = [{"Key": "k", "Value": "v"}]
        self.refused(
            "InvalidNetworkInterfaceID.NotFound", create, Resources=["eni-0123456789abcdef0"], Tags=one
        )
        eni = self.create()["NetworkInterfaceId"]
        self.refused(
            "InvalidParameterValue", create, Resources=[eni], Tags=[{"Key": "aws:x", "Value": "v"}]
        )
        many = [{"Key": f"k{n}", "Value": "v"} for n in range(51)]
        self.refused("TagLimitExceeded", create, Resources=[eni], Tags=many)
        self.refused(
            "TagLimitExceeded",
            EC2.create_network_interface,
            SubnetId=LAB["subnets"]["nodes"],
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": many}],
        )
        EC2.create_tags(Resources=[eni], Tags=many[:50])
        self.refused("TagLimitExceeded", create, Resources=[eni], Tags=one)
        EC2.create_tags(Resources=[eni], Tags=[{"Key": "k0", "Value": "other"}])
        EC2.create_tags(Resources=[LAB["subnets"]["v6"]], Tags=[{"Key": "kubernetes.io/role/cni", "Value": "1"}])
        wanted = [{"Name": "tag:kubernetes.io/role/cni", "Values": ["1"]}]
        (subnet,) = EC2.describe_subnets(Filters=wanted)["Subnets"]
        self.assertEqual(subnet["SubnetId"], LAB["subnets"]["v6"])


class Addresses(Case):
    def test_secondary_addresses(self):
        eni = self.create()["NetworkInterfaceId"]
        answer = EC2.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=3)
        given = [entry["PrivateIpAddress"] for entry in answer["AssignedPrivateIpAddresses"]]
        self.assertEqual(len(set(given)), 3)
        self.assertEqual(secondaries(self.show(eni)), given)
        EC2.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=given[:2])
        self.assertEqual(secondaries(self.show(eni)), given[2:])
        answer = EC2.assign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=given[:1])
        self.assertEqual(answer["AssignedPrivateIpAddresses"], [{"PrivateIpAddress": given[0]}])
        unassign = EC2.unassign_private_ip_addresses
        self.refused(
            "InvalidParameterValue",
            unassign,
            f"Some of [{given[1]}] are not assigned to interface {eni}",
            NetworkInterfaceId=eni,
            PrivateIpAddresses=[given[1], given[0]],
        )
        other = self.create()["NetworkInterfaceId"]
        assign = EC2.assign_private_ip_addresses
        self.refused(
            "InvalidIPAddress.InUse", assign, NetworkInterfaceId=other, PrivateIpAddresses=given[:1]
        )
        EC2.assign_private_ip_addresses(
            NetworkInterfaceId=other, PrivateIpAddresses=given[:1], AllowReassignment=True
        )
        self.assertEqual(secondaries(self.show(other)), given[:1])
        self.refused("InvalidParameterCombination", assign, NetworkInterfaceId=eni)
        self.refused("InvalidParameterValue", assign, NetworkInterfaceId=eni, PrivateIpAddresses=["10.9.9.9"])

    def test_explicit_addresses_at_creation(self):
        eni = self.create(
            subnet="exact",
            PrivateIpAddresses=[
                {"PrivateIpAddress": "10.0.9.10", "Primary": True},
                {"PrivateIpAddress": "10.0.9.11", "Primary": False},
            ],
        )
        self.assertEqual((eni["PrivateIpAddress"], secondaries(eni)), ("10.0.9.10", ["10.0.9.11"]))
        self.refused(
            "InvalidParameterValue",
            EC2.create_network_interface,
            SubnetId=LAB["subnets"]["exact"],
            PrivateIpAddress="10.0.9.1",
        )

    def test_prefixes(self):
        eni = self.create(Ipv4PrefixCount=2)
        prefixes = [entry["Ipv4Prefix"] for entry in eni["Ipv4Prefixes"]]
        subnet = ipaddress.ip_network("10.0.0.0/21")
        for prefix in prefixes:
            network = ipaddress.ip_network(prefix)
            self.assertEqual(network.prefixlen, 28)
            self.assertTrue(network.subnet_of(subnet))
        own = eni["NetworkInterfaceId"]
        answer = EC2.assign_private_ip_addresses(NetworkInterfaceId=own, Ipv4PrefixCount=1)
        added = [entry["Ipv4Prefix"] for entry in answer["AssignedIpv4Prefixes"]]
        shown = [entry["Ipv4Prefix"] for entry in self.show(own)["Ipv4Prefixes"]]
        self.assertEqual(shown, prefixes + added)
        self.refused(
            "InvalidParameterCombination",
            EC2.unassign_private_ip_addresses,
            NetworkInterfaceId=own,
            Ipv4Prefixes=prefixes,
            PrivateIpAddresses=[eni["PrivateIpAddress"]],
        )
        EC2.unassign_private_ip_addresses(NetworkInterfaceId=own, Ipv4Prefixes=prefixes)
        self.assertEqual([e["Ipv4Prefix"] for e in self.show(own)["Ipv4Prefixes"]], added)
        EC2.assign_private_ip_addresses(NetworkInterfaceId=own, Ipv4Prefixes=prefixes[:1])
        taken = self.create()["NetworkInterfaceId"]
        self.refused(
            "InsufficientCidrBlocks",
            EC2.assign_private_ip_addresses,
            NetworkInterfaceId=taken,
            Ipv4Prefixes=prefixes[:1],
        )

    def test_addresses_and_prefixes_share_the_slots_of_the_type(self):
        mine = [{"Name": "attachment.instance-id", "Values": [LAB["nodes"]["t3.small"]]}]
        (primary,) = EC2.describe_network_interfaces(Filters=mine)["NetworkInterfaces"]
        own = primary["NetworkInterfaceId"]
        EC2.assign_private_ip_addresses(NetworkInterfaceId=own, SecondaryPrivateIpAddressCount=2)
        EC2.assign_private_ip_addresses(NetworkInterfaceId=own, Ipv4PrefixCount=1)
        assign = EC2.assign_private_ip_addresses
        for params in ({"Ipv4PrefixCount": 1}, {"SecondaryPrivateIpAddressCount": 1}):
            self.refused(
                "PrivateIpAddressLimitExceeded",
                assign,
                "Number of private addresses will exceed limit.",
                NetworkInterfaceId=own,
                **params,
            )

    def test_full_and_fragmented_subnets(self):
        create = EC2.create_network_interface
        tiny = LAB["subnets"]["tiny"]
        self.refused(
            "InsufficientFreeAddressesInSubnet",
            create,
            "The specified subnet does not have enough free addresses to satisfy the request.",
            SubnetId=tiny,
            SecondaryPrivateIpAddressCount=11,
        )
        self.refused(
            "InsufficientCidrBlocks",
            create,
            "The specified subnet does not have enough free cidr blocks to satisfy the request.",
            SubnetId=tiny,
            Ipv4PrefixCount=1,
        )
        eni = self.create(subnet="tiny", SecondaryPrivateIpAddressCount=10)
        (subnet,) = EC2.describe_subnets(SubnetIds=[tiny])["Subnets"]
        self.assertEqual(subnet["AvailableIpAddressCount"], 0)
        self.discard(eni["NetworkInterfaceId"])
        (subnet,) = EC2.describe_subnets(SubnetIds=[tiny])["Subnets"]
        self.assertEqual(subnet["AvailableIpAddressCount"], 11)

    def test_ipv6(self):
        eni = self.create(subnet="v6", Ipv6AddressCount=1)
        own = eni["NetworkInterfaceId"]
        self.assertEqual(len(eni["Ipv6Addresses"]), 1)
        assigned = EC2.assign_ipv6_addresses(NetworkInterfaceId=own, Ipv6AddressCount=2)["AssignedIpv6Addresses"]
        prefixes = EC2.assign_ipv6_addresses(NetworkInterfaceId=own, Ipv6PrefixCount=1)["AssignedIpv6Prefixes"]
        self.assertEqual(ipaddress.ip_network(prefixes[0]).prefixlen, 80)
        shown = self.show(own)
        self.assertEqual([e["Ipv6Prefix"] for e in shown["Ipv6Prefixes"]], prefixes)
        self.assertEqual([e["Ipv6Address"] for e in shown["Ipv6Addresses"]][1:], assigned)
        answer = EC2.unassign_ipv6_addresses(NetworkInterfaceId=own, Ipv6Addresses=assigned)
        self.assertEqual(answer["UnassignedIpv6Addresses"], assigned)
        answer = EC2.unassign_ipv6_addresses(NetworkInterfaceId=own, Ipv6Prefixes=prefixes)
        self.assertEqual(answer["UnassignedIpv6Prefixes"], prefixes)
        EC2.assign_ipv6_addresses(NetworkInterfaceId=own, Ipv6Addresses=assigned[:1], Ipv6Prefixes=[])
        self.refused(
            "InvalidParameterValue",
            EC2.assign_ipv6_addresses,
            NetworkInterfaceId=self.create()["NetworkInterfaceId"],
            Ipv6PrefixCount=1,
        )


if __name__ == "__main__":
    unittest.main(verbosity=2)
