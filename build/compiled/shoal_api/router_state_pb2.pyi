from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STANDING_UNSPECIFIED: _ClassVar[Standing]
    STANDING_NOT_READY: _ClassVar[Standing]
    STANDING_ROUTABLE: _ClassVar[Standing]
    STANDING_SUSPECT: _ClassVar[Standing]
    STANDING_CORDONED: _ClassVar[Standing]
STANDING_UNSPECIFIED: Standing
STANDING_NOT_READY: Standing
STANDING_ROUTABLE: Standing
STANDING_SUSPECT: Standing
STANDING_CORDONED: Standing

class ObserveRequest(_message.Message):
    __slots__ = ("observer",)
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    observer: str
    def __init__(self, observer: _Optional[str] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("router", "sequence", "synced", "draining", "endpoints", "models")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    router: str
    sequence: int
    synced: bool
    draining: bool
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, router: _Optional[str] = ..., sequence: _Optional[int] = ..., synced: _Optional[bool] = ..., draining: _Optional[bool] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("namespace", "pod", "uid", "standing", "in_flight", "running", "waiting", "kv_usage", "max_num_seqs", "report_age_s")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    REPORT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    pod: str
    uid: str
    standing: Standing
    in_flight: int
    running: int
    waiting: int
    kv_usage: float
    max_num_seqs: int
    report_age_s: float
    def __init__(self, namespace: _Optional[str] = ..., pod: _Optional[str] = ..., uid: _Optional[str] = ..., standing: _Optional[_Union[Standing, str]] = ..., in_flight: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_usage: _Optional[float] = ..., max_num_seqs: _Optional[int] = ..., report_age_s: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("namespace", "deployment", "arrivals", "held", "idle_s")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    deployment: str
    arrivals: int
    held: int
    idle_s: float
    def __init__(self, namespace: _Optional[str] = ..., deployment: _Optional[str] = ..., arrivals: _Optional[int] = ..., held: _Optional[int] = ..., idle_s: _Optional[float] = ...) -> None: ...
