#ifndef MYPYC_NATIVE_shoal_router_H
#define MYPYC_NATIVE_shoal_router_H
#include <Python.h>
#include <CPy.h>
#ifndef MYPYC_DECLARED_tuple_T3OOO
#define MYPYC_DECLARED_tuple_T3OOO
typedef struct tuple_T3OOO {
    PyObject *f0;
    PyObject *f1;
    PyObject *f2;
} tuple_T3OOO;
#endif

#ifndef MYPYC_DECLARED_tuple_T2FO
#define MYPYC_DECLARED_tuple_T2FO
typedef struct tuple_T2FO {
    double f0;
    PyObject *f1;
} tuple_T2FO;
#endif

#ifndef MYPYC_DECLARED_tuple_T2OO
#define MYPYC_DECLARED_tuple_T2OO
typedef struct tuple_T2OO {
    PyObject *f0;
    PyObject *f1;
} tuple_T2OO;
#endif

#ifndef MYPYC_DECLARED_tuple_T2FC
#define MYPYC_DECLARED_tuple_T2FC
typedef struct tuple_T2FC {
    double f0;
    char f1;
} tuple_T2FC;
#endif

#ifndef MYPYC_DECLARED_tuple_T2II
#define MYPYC_DECLARED_tuple_T2II
typedef struct tuple_T2II {
    CPyTagged f0;
    CPyTagged f1;
} tuple_T2II;
#endif

#ifndef MYPYC_DECLARED_tuple_T3IIF
#define MYPYC_DECLARED_tuple_T3IIF
typedef struct tuple_T3IIF {
    CPyTagged f0;
    CPyTagged f1;
    double f2;
} tuple_T3IIF;
#endif

#ifndef MYPYC_DECLARED_tuple_T0
#define MYPYC_DECLARED_tuple_T0
typedef struct tuple_T0 {
    int empty_struct_error_flag;
} tuple_T0;
#endif

#ifndef MYPYC_DECLARED_tuple_T2IO
#define MYPYC_DECLARED_tuple_T2IO
typedef struct tuple_T2IO {
    CPyTagged f0;
    PyObject *f1;
} tuple_T2IO;
#endif

#ifndef MYPYC_DECLARED_tuple_T4CIOO
#define MYPYC_DECLARED_tuple_T4CIOO
typedef struct tuple_T4CIOO {
    char f0;
    CPyTagged f1;
    PyObject *f2;
    PyObject *f3;
} tuple_T4CIOO;
#endif

#ifndef MYPYC_DECLARED_tuple_T4FOOO
#define MYPYC_DECLARED_tuple_T4FOOO
typedef struct tuple_T4FOOO {
    double f0;
    PyObject *f1;
    PyObject *f2;
    PyObject *f3;
} tuple_T4FOOO;
#endif

#ifndef MYPYC_DECLARED_tuple_T3CIO
#define MYPYC_DECLARED_tuple_T3CIO
typedef struct tuple_T3CIO {
    char f0;
    CPyTagged f1;
    PyObject *f2;
} tuple_T3CIO;
#endif

#ifndef MYPYC_DECLARED_tuple_T2OF
#define MYPYC_DECLARED_tuple_T2OF
typedef struct tuple_T2OF {
    PyObject *f0;
    double f1;
} tuple_T2OF;
#endif

#ifndef MYPYC_DECLARED_tuple_T1O
#define MYPYC_DECLARED_tuple_T1O
typedef struct tuple_T1O {
    PyObject *f0;
} tuple_T1O;
#endif

#ifndef MYPYC_DECLARED_tuple_T4OOOO
#define MYPYC_DECLARED_tuple_T4OOOO
typedef struct tuple_T4OOOO {
    PyObject *f0;
    PyObject *f1;
    PyObject *f2;
    PyObject *f3;
} tuple_T4OOOO;
#endif

#ifndef MYPYC_DECLARED_tuple_T4OOT0C
#define MYPYC_DECLARED_tuple_T4OOT0C
typedef struct tuple_T4OOT0C {
    PyObject *f0;
    PyObject *f1;
    tuple_T0 f2;
    char f3;
} tuple_T4OOT0C;
#endif

#ifndef MYPYC_DECLARED_tuple_T4OOOF
#define MYPYC_DECLARED_tuple_T4OOOF
typedef struct tuple_T4OOOF {
    PyObject *f0;
    PyObject *f1;
    PyObject *f2;
    double f3;
} tuple_T4OOOF;
#endif

#ifndef MYPYC_DECLARED_tuple_T2FF
#define MYPYC_DECLARED_tuple_T2FF
typedef struct tuple_T2FF {
    double f0;
    double f1;
} tuple_T2FF;
#endif

#ifndef MYPYC_DECLARED_tuple_T1T2OO
#define MYPYC_DECLARED_tuple_T1T2OO
typedef struct tuple_T1T2OO {
    tuple_T2OO f0;
} tuple_T1T2OO;
#endif

#ifndef MYPYC_DECLARED_tuple_T9OOOOOOOOO
#define MYPYC_DECLARED_tuple_T9OOOOOOOOO
typedef struct tuple_T9OOOOOOOOO {
    PyObject *f0;
    PyObject *f1;
    PyObject *f2;
    PyObject *f3;
    PyObject *f4;
    PyObject *f5;
    PyObject *f6;
    PyObject *f7;
    PyObject *f8;
} tuple_T9OOOOOOOOO;
#endif

#ifndef MYPYC_DECLARED_tuple_T2OI
#define MYPYC_DECLARED_tuple_T2OI
typedef struct tuple_T2OI {
    PyObject *f0;
    CPyTagged f1;
} tuple_T2OI;
#endif

#ifndef MYPYC_DECLARED_tuple_T5OOOOO
#define MYPYC_DECLARED_tuple_T5OOOOO
typedef struct tuple_T5OOOOO {
    PyObject *f0;
    PyObject *f1;
    PyObject *f2;
    PyObject *f3;
    PyObject *f4;
} tuple_T5OOOOO;
#endif

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___admission___WaiterObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_queues;
    CPyTagged _held_bytes;
    PyObject *__whys;
    PyObject *__rates;
    PyObject *__models;
    PyObject *__demand;
    PyObject *__metrics;
    CPyTagged __max_bytes;
    PyObject *__now;
    PyObject *__chance;
    char __releasing;
    char __closed;
} shoal_router___admission___AdmissionObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___attempt___OwnerObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_owner;
    PyObject *_placement;
    double _sent_s;
    PyObject *__now;
    PyObject *__connection;
    PyObject *__connecting;
    char __reused;
    PyObject *__refusal;
    PyObject *__head;
    PyObject *__passes;
} shoal_router___attempt___AttemptObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t mypyc_running;
    PyObject *___mypyc_generator_frame_attribute__self;
    PyObject *___mypyc_generator_frame_attribute__head;
    PyObject *___mypyc_generator_frame_attribute__body;
    int32_t ___mypyc_next_label__;
    PyObject *___mypyc_temp__3_shoal_router___attempt____connect_Attempt_gen_0;
} shoal_router___attempt____connect_Attempt_genObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__holders;
    CPyTagged __bit;
    CPyTagged __capacity;
    PyObject *__lru;
} shoal_router___believed_cache___BelievedCacheObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___connection___AnsweringObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *__listener;
    PyObject *__transport;
    PyObject *__reader;
    PyObject *__peer;
    PyObject *__waiting;
    PyObject *__request;
    PyObject *__answering;
    PyObject *__phase;
    char __busy;
    char __closing;
    char __pumping;
    char __reading_paused;
    double __deadline;
    double __blocked_since;
    CPyTagged __receiving;
} shoal_router___connection___ClientConnectionObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___decisions___costs_Decision_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _last_s;
    CPyTagged _arrivals;
    CPyTagged _active;
    CPyTagged _held;
} shoal_router___demand___AskedObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__now;
    double __started_s;
    PyObject *__models;
} shoal_router___demand___DemandObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    char _busy;
    double __at_s;
    double __seconds;
    double __left;
    double __tokens;
} shoal_router___drain_rate___DrainRateObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_models;
    CPyTagged _kv_tokens;
    CPyTagged _running;
    CPyTagged _waiting;
    double _kv_usage;
    CPyTagged _max_num_seqs;
    CPyTagged _max_requests;
    double _started_at_s;
    CPyTagged _grpc_port;
} shoal_router___endpoints___ReportObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _requests;
    CPyTagged _faults;
    CPyTagged _ejections;
    CPyTagged _prompt_tokens;
    CPyTagged _predicted_tokens;
    CPyTagged _cached_tokens;
    CPyTagged _contradictions;
    CPyTagged _updates;
    CPyTagged _snapshots;
    CPyTagged _gaps;
} shoal_router___endpoints___TallyObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_address;
    CPyTagged _slot;
    PyObject *_pool;
    CPyTagged _identity;
    PyObject *_label;
    PyObject *_authority;
    PyObject *_standing;
    PyObject *_report;
    PyObject *_reported_s;
    CPyTagged _in_flight;
    double _queued_tokens;
    PyObject *_waiting;
    char _linked;
    CPyTagged _elsewhere;
    double _queued_elsewhere;
    double _seats;
    double _ceiling;
    char _removed;
    PyObject *_tally;
} shoal_router___endpoints___EndpointObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__make_pool;
    PyObject *__by_key;
    PyObject *__leaving;
    PyObject *__slots;
    PyObject *_recent_moves;
    PyObject *_on_add;
    PyObject *_on_remove;
    PyObject *_on_change;
    PyObject *_on_load;
} shoal_router___endpoints___EndpointSetObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_last_word;
    PyObject *__progress;
    PyObject *__pieces;
    CPyTagged __seen;
    PyObject *__unchunker;
} shoal_router___event_reader___EventReaderObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _started_s;
    char _blocked;
    PyObject *__proxy;
    PyObject *__client;
    PyObject *__request;
    PyObject *__prompt;
    double __last_piece_s;
    PyObject *__history;
    PyObject *__tried;
    PyObject *__attempt;
    PyObject *__usage;
    char __kept;
    double _waits_until_s;
    PyObject *__failure;
    PyObject *__relay;
} shoal_router___exchange___ExchangeObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_tenant;
    PyObject *_band;
    double _tokens;
    CPyTagged _size;
} shoal_router___fair_queue___ClaimObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_items;
    double _start;
    double _tokens;
    CPyTagged _size;
} shoal_router___fair_queue___FlowObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_flows;
    double _round;
    double _tokens;
    double _owed;
} shoal_router___fair_queue___BandObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_claims;
    PyObject *__bands;
} shoal_router___fair_queue___FairQueueObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *___mypyc_self__;
    PyObject *_self;
} shoal_router___fair_queue___next_tenant_Band_envObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
    PyObject *___mypyc_env__;
} shoal_router___fair_queue_____mypyc_lambda__0_next_tenant_Band_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__plain;
    PyObject *__credentials;
    PyObject *__ratios;
    PyObject *__answers;
    PyObject *__onward;
    PyObject *__now;
    PyObject *_meters;
    PyObject *_keyring;
    PyObject *_watch;
} shoal_router___gate___GateObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t mypyc_running;
    PyObject *___mypyc_generator_frame_attribute__self;
    int32_t ___mypyc_next_label__;
    PyObject *___mypyc_temp__3_shoal_router___gate___stop_Gate_gen_0;
} shoal_router___gate___stop_Gate_genObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _head_bytes;
    CPyTagged _header_count;
    CPyTagged _body_bytes;
} shoal_router___http1___HttpLimitsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_phase;
    char _dead;
    PyObject *__limits;
    PyObject *__vet;
    PyObject *__deliver;
    PyObject *__refuse;
    PyObject *__send_continue;
    PyObject *__parser;
    PyObject *__lines;
    CPyTagged __head_lines;
    PyObject *__target;
    PyObject *__request;
    PyObject *__last;
    PyObject *__repeated;
    PyObject *__parts;
    CPyTagged __body_bytes;
    CPyTagged __read_bytes;
    CPyTagged __first_bytes;
    CPyTagged __later_bytes;
} shoal_router___http1___RequestReaderObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___interrupted___StreamObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_streams;
    PyObject *__now;
    double __pinged_s;
    char __trying;
} shoal_router___interrupted___InterruptedObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _requests_per_minute;
    CPyTagged _tokens_per_minute;
    CPyTagged _max_in_flight;
} shoal_router___keys___LimitsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_name;
    PyObject *_digest;
    PyObject *_tenant;
    PyObject *_priority;
    PyObject *_limits;
    PyObject *_cache_salt;
    double _expires_s;
} shoal_router___keys___KeyObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    char _asks;
    PyObject *_keys;
    PyObject *__unix_s;
    PyObject *__by_digest;
    PyObject *__remembered;
} shoal_router___keys___KeyringObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_http;
    double _head_timeout_s;
    double _body_timeout_s;
    double _keep_alive_s;
    double _stalled_client_s;
    double _linger_s;
    CPyTagged _max_connections;
    CPyTagged _max_peer_connections;
    CPyTagged _max_receiving_bytes;
} shoal_router___listener___ConnectionSettingsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_settings;
    PyObject *_vet;
    PyObject *_answer;
    PyObject *_count_error;
    PyObject *_now;
    CPyTagged _receiving_bytes;
    PyObject *_connections;
    PyObject *__of_peer;
    double _keep_alive_s;
    PyObject *_journal;
    char _draining;
} shoal_router___listener___ListenerObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__endpoints;
    PyObject *__default;
    PyObject *__routable;
    PyObject *__known;
    PyObject *__owners;
    PyObject *__routing;
} shoal_router___models___ModelTableObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__models;
    PyObject *__index;
    PyObject *__ratios;
    PyObject *__prices;
    PyObject *__pick;
    PyObject *__recent;
    PyObject *__fleets;
    PyObject *_decisions;
} shoal_router___placement___PlacerObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___placement___first_byte_Placement_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___placement___end_Placement_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _recompute;
    PyObject *_in_flight_tokens;
    double _mean_load;
    double _spare_requests;
    double _near_requests;
    double _returning;
} shoal_router___policy___WeightsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _identity;
    double _cached;
    double _queued;
    double _in_flight;
    double _seats;
    char _drawn;
} shoal_router___policy___CandidateObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___policy___derived_Prices_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___policy___moved_Prices_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___policy___home_Prefix_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *___mypyc_self__;
    PyObject *_candidates;
    CPyTagged _home;
} shoal_router___policy___choose_envObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
    PyObject *___mypyc_env__;
} shoal_router___policy_____mypyc_lambda__0_choose_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_address;
    double __connect_timeout_s;
    PyObject *__idle;
    char __closed;
} shoal_router___pool___PoolObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *___mypyc_self__;
    PyObject *___mypyc_generator_attribute__connection;
} shoal_router___pool___connect_Pool_envObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t mypyc_running;
    PyObject *___mypyc_env__;
    PyObject *___mypyc_generator_frame_attribute__self;
    char ___mypyc_generator_frame_attribute__once;
    int32_t ___mypyc_next_label__;
    PyObject *___mypyc_generator_frame_attribute__address;
    char ___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_1;
    PyObject *___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_2;
    PyObject *___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_3;
    tuple_T3OOO ___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_4;
    PyObject *___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_5;
    tuple_T3OOO ___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_6;
    PyObject *___mypyc_temp__3_shoal_router___pool___connect_Pool_gen_7;
    PyObject *___mypyc_temp__2_shoal_router___pool___connect_Pool_gen_0;
    PyObject *___mypyc_temp__2_shoal_router___pool___connect_Pool_gen_1;
} shoal_router___pool___connect_Pool_genObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
    PyObject *___mypyc_env__;
} shoal_router___pool_____mypyc_lambda__0_connect_Pool_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__holders;
    PyObject *__believed;
    PyObject *__reported;
    PyObject *__capacity;
    CPyTagged __stamp;
} shoal_router___prefix_index___PrefixIndexObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__prices;
} shoal_router___prices___LearnedPricesObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _started_s;
    char _blocked;
    PyObject *__proxy;
    PyObject *__client;
    PyObject *__request;
    PyObject *__prompt;
    double __last_piece_s;
    PyObject *__history;
    PyObject *__tried;
    PyObject *__attempt;
    PyObject *__usage;
    char __kept;
} shoal_router___proxied___ProxiedObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_retries;
    PyObject *_timeouts;
    CPyTagged _resume_bytes;
} shoal_router___proxy___ProxySettingsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_settings;
    PyObject *_placer;
    PyObject *_metrics;
    PyObject *_demand;
    PyObject *_admission;
    PyObject *_gate;
    PyObject *_answers;
    PyObject *_observe;
    PyObject *_routing;
    PyObject *_now;
    PyObject *_interrupted;
    PyObject *_quarantine;
    PyObject *_journal;
    PyObject *_active;
    CPyTagged _retrying;
    CPyTagged _kept_bytes;
} shoal_router___proxy___ProxyObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _total;
    PyObject *__died_s;
    PyObject *__deaths_s;
    PyObject *__until_s;
} shoal_router___quarantine___QuarantineObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _count;
    CPyTagged _size;
    PyObject *_wait_s;
} shoal_router___queue_bounds___BoundsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _count;
    CPyTagged _size;
    CPyTagged _own_count;
    CPyTagged _own_size;
    CPyTagged _running;
    PyObject *_expected_s;
} shoal_router___queue_bounds___WaitingObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__lines;
    double _capacity;
    double _rate_s;
    double __level;
    double __at_s;
} shoal_router___rate_limits___BucketObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__chance;
    CPyTagged _requests;
    CPyTagged _refused;
    CPyTagged _tokens;
    CPyTagged _in_flight;
    double _mean_s;
    PyObject *_request_bucket;
    PyObject *_token_bucket;
    PyObject *__limits;
} shoal_router___rate_limits___MeterObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_meter;
    double __tokens;
    double __began_s;
} shoal_router___rate_limits___GrantObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__now;
    PyObject *__chance;
    PyObject *_by_name;
} shoal_router___rate_limits___MetersObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__noted;
    CPyTagged __most;
} shoal_router___recent_prefixes___RecentPrefixesObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_head;
    PyObject *__pieces;
} shoal_router___refusal___RefusalObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__client;
    char __close;
    PyObject *__head;
    PyObject *__unchunker;
    PyObject *__write;
    PyObject *_tail;
    char _fresh;
} shoal_router___relay___RelayObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__before;
    PyObject *__after;
    PyObject *__head;
} shoal_router___repeated_head___RepeatedHeadObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__holders;
    CPyTagged __bit;
    PyObject *__stored;
    PyObject *__claims;
    PyObject *__ended;
    PyObject *__ended_before;
} shoal_router___reported_cache___ReportedCacheObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_method;
    PyObject *_target;
    PyObject *_path;
    char _http10;
    char _keep_alive;
    PyObject *_headers;
    PyObject *_lines;
    PyObject *_authorization;
    PyObject *_credentials;
    PyObject *_request_id;
    PyObject *_traceparent;
    PyObject *_trace_line;
    CPyTagged _hosts;
    CPyTagged _content_length;
    char _chunked;
    char _expects_continue;
    PyObject *_named_hops;
} shoal_router___request___HeadObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_head;
    PyObject *_method;
    PyObject *_path;
    char _keep_alive;
    PyObject *_authorization;
    PyObject *_request_id;
    PyObject *_body;
    PyObject *_refusal;
    PyObject *_key;
    PyObject *_tenant;
    PyObject *_grant;
    PyObject *_record;
    PyObject *_onward;
} shoal_router___request___RequestObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_progress;
    char _fresh;
    PyObject *_tail;
    PyObject *__client;
    char __close;
    PyObject *__head;
    char __framed;
    PyObject *__last_word;
    CPyTagged __before;
    PyObject *__reader;
    char __quick;
} shoal_router___resumable_relay___ResumableRelayObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _started_s;
    char _blocked;
    PyObject *__proxy;
    PyObject *__client;
    PyObject *__request;
    PyObject *__prompt;
    double __last_piece_s;
    PyObject *__history;
    PyObject *__tried;
    PyObject *__attempt;
    PyObject *__usage;
    char __kept;
    PyObject *__failure;
    double __gives_up_s;
    PyObject *__unlike;
    PyObject *__relay;
} shoal_router___resumable_stream___ResumableStreamObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_state;
    PyObject *_stage;
    PyObject *_ids;
} shoal_router___resume___ProgressObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    CPyTagged _max_retries;
    double _budget;
} shoal_router___retry___RetryLimitsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    CPyTagged _retries;
    CPyTagged _stale;
    CPyTagged _deaths;
    CPyTagged _fruitless;
} shoal_router___retry___HistoryObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_methods;
    PyObject *_work;
    char _open;
} shoal_router___routes___RouteObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_endpoints;
    CPyTagged _slots;
    PyObject *__by_slot;
    PyObject *__points;
    PyObject *__owners;
    CPyTagged __choices;
    double __mean;
} shoal_router___shortlist___FleetObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *_state;
    CPyTagged _soft_faults;
    CPyTagged _ejections;
    double _pause_until_s;
    char _unreachable;
} shoal_router___standing___StandingObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    double _first_byte_s;
    double _idle_s;
    double _total_s;
} shoal_router___timeouts___TimeoutsObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_on_body;
    char __between_chunks;
    char __ends_line;
    PyObject *__parser;
} shoal_router___unchunk___UnchunkerObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___upstream___ReplySinkObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
} shoal_router___upstream___KeeperObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    uint32_t bitmap;
    PyObject *__keeper;
    PyObject *__transport;
    PyObject *__parser;
    PyObject *__sink;
    PyObject *__headers;
    PyObject *__head;
    PyObject *__reply;
    char __started;
    char __complete;
    char __reusable;
    char __paused;
    CPyTagged __length;
    CPyTagged __body_bytes;
    PyObject *__tail;
    double _idle_since;
} shoal_router___upstream___UpstreamConnectionObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___upstream___event_stream_ReplyHead_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    vectorcallfunc vectorcall;
} shoal_router___upstream___not_started_ReplyHead_objObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__ratios;
} shoal_router___usage___BytesPerTokenObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *__means;
} shoal_router___usage___AnswerTokensObject;

typedef struct {
    PyObject_HEAD
    CPyVTableItem *vtable;
    PyObject *_queue;
    PyObject *__rate;
    PyObject *__rates;
} shoal_router___waiting_line___WaitingLineObject;

#endif
