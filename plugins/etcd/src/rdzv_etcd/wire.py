"""The messages of etcd's v3 API that the client uses, in a descriptor pool of their own.

A pool of its own, because two etcd clients in one process would collide in protobuf's default
one; and no generated modules, because those work with few versions of protobuf.
"""

from __future__ import annotations

from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "Message", "message"]

Message = Any
"""A message: protobuf makes its class at run time."""

# As in etcd's api/etcdserverpb/rpc.proto. Enumerations are numbers here: they look alike on the
# wire. So does a oneof, of which at most one field is set.
_SCHEMA = """
KeyValue        key=1:bytes create_revision=2 mod_revision=3 version=4 value=5:bytes lease=6
ResponseHeader  cluster_id=1:uint64 member_id=2:uint64 revision=3 raft_term=4:uint64
RangeRequest    key=1:bytes range_end=2:bytes limit=3 revision=4 sort_order=5 sort_target=6 \
                serializable=7:bool keys_only=8:bool count_only=9:bool \
                min_mod_revision=10 max_mod_revision=11 min_create_revision=12 \
                max_create_revision=13
RangeResponse   header=1:ResponseHeader kvs=2:KeyValue* more=3:bool count=4
PutRequest      key=1:bytes value=2:bytes lease=3
PutResponse     header=1:ResponseHeader
DeleteRangeRequest   key=1:bytes range_end=2:bytes
DeleteRangeResponse  header=1:ResponseHeader deleted=2
RequestOp       request_range=1:RangeRequest request_put=2:PutRequest \
                request_delete_range=3:DeleteRangeRequest
ResponseOp      response_range=1:RangeResponse response_put=2:PutResponse \
                response_delete_range=3:DeleteRangeResponse
Compare         result=1 target=2 key=3:bytes version=4 create_revision=5 mod_revision=6 \
                value=7:bytes lease=8 range_end=64:bytes
TxnRequest      compare=1:Compare* success=2:RequestOp* failure=3:RequestOp*
TxnResponse     header=1:ResponseHeader succeeded=2:bool responses=3:ResponseOp*
LeaseGrantRequest   TTL=1 ID=2
LeaseGrantResponse  header=1:ResponseHeader ID=2 TTL=3 error=4:string
LeaseRevokeRequest  ID=1
LeaseRevokeResponse  header=1:ResponseHeader
LeaseKeepAliveRequest   ID=1
LeaseKeepAliveResponse  header=1:ResponseHeader ID=2 TTL=3
LeaseTimeToLiveRequest   ID=1
LeaseTimeToLiveResponse  header=1:ResponseHeader ID=2 TTL=3 grantedTTL=4
WatchCreateRequest  key=1:bytes range_end=2:bytes start_revision=3 filters=5*
WatchRequest    create_request=1:WatchCreateRequest
Event           type=1 kv=2:KeyValue
WatchResponse   header=1:ResponseHeader watch_id=2 created=3:bool canceled=4:bool \
                compact_revision=5 cancel_reason=6:string events=11:Event*
AuthenticateRequest   name=1:string password=2:string
AuthenticateResponse  header=1:ResponseHeader token=2:string
StatusRequest
StatusResponse  header=1:ResponseHeader version=2:string dbSize=3 leader=4:uint64 \
                raftIndex=5:uint64 raftTerm=6:uint64 errors=8:string* dbSizeInUse=9 \
                isLearner=10:bool dbSizeQuota=12
Member          ID=1:uint64 name=2:string peerURLs=3:string* clientURLs=4:string* isLearner=5:bool
MemberListRequest
MemberListResponse  header=1:ResponseHeader members=2:Member*
AlarmRequest    action=1 memberID=2:uint64 alarm=3
AlarmMember     memberID=1:uint64 alarm=2
AlarmResponse   header=1:ResponseHeader alarms=2:AlarmMember*
"""

METHODS = {
    "Range": ("KV", "RangeRequest", "RangeResponse"),
    "Put": ("KV", "PutRequest", "PutResponse"),
    "DeleteRange": ("KV", "DeleteRangeRequest", "DeleteRangeResponse"),
    "Txn": ("KV", "TxnRequest", "TxnResponse"),
    "LeaseGrant": ("Lease", "LeaseGrantRequest", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease", "LeaseRevokeRequest", "LeaseRevokeResponse"),
    "LeaseKeepAlive": ("Lease", "LeaseKeepAliveRequest", "LeaseKeepAliveResponse"),
    "LeaseTimeToLive": ("Lease", "LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse"),
    "Watch": ("Watch", "WatchRequest", "WatchResponse"),
    "Authenticate": ("Auth", "AuthenticateRequest", "AuthenticateResponse"),
    "MemberList": ("Cluster", "MemberListRequest", "MemberListResponse"),
    "Alarm": ("Maintenance", "AlarmRequest", "AlarmResponse"),
    "Status": ("Maintenance", "StatusRequest", "StatusResponse"),
}
"""The service of each method, its request and its response."""

_PACKAGE = "rdzv_etcd"


def _classes() -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    # With presence: a comparison with the number 0 has to be on the wire.
    file = descriptor_pb2.FileDescriptorProto(
        name="rdzv_etcd.proto", package=_PACKAGE, syntax="proto2"
    )
    for line in _SCHEMA.strip().splitlines():
        name, *fields = line.split()
        described = file.message_type.add(name=name)
        for field in fields:
            title, _, rest = field.partition("=")
            number, _, kind = rest.rstrip("*").partition(":")
            kind = kind or "int64"
            scalar = getattr(field_type, f"TYPE_{kind.upper()}", None)
            made = described.field.add(
                name=title,
                number=int(number),
                label=field_type.LABEL_REPEATED if field[-1] == "*" else field_type.LABEL_OPTIONAL,
                type=field_type.TYPE_MESSAGE if scalar is None else scalar,
            )
            if scalar is None:
                made.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    names = [described.name for described in file.message_type]
    found = [pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in names]
    made_of = getattr(message_factory, "GetMessageClass", None)
    if made_of is None:  # protobuf before 4.22
        made_of = cast("Any", message_factory.MessageFactory(pool)).GetPrototype
    return {name: made_of(each) for name, each in zip(names, found, strict=True)}


_CLASSES = _classes()


def message(name: str) -> Any:
    """The class of the messages called ``name``."""
    return _CLASSES[name]
