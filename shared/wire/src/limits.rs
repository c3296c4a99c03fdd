//! Every limit of the farm's protocol in one place, each with its unit, its reason, and the error that passing it gives.

/// Bytes of one frame's body. A frame is decoded in memory, so this bounds what a peer can make us hold.
/// Passing it: `FrameError::TooLong`, and the connection is closed.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Bytes of one `.drv` file. The largest of 62,315 real ones is 130 KB. Passing it: the submission is refused.
pub const DERIVATION_BYTES_MAX: usize = 4 << 20;

/// Bytes of derivations that a client packs into one `AddDerivations`, well below [`FRAME_BYTES_MAX`].
pub const DERIVATION_BATCH_BYTES: usize = 1 << 20;

/// Paths asked about in one `Missing` or `PathInfos`. Passing it: the request is refused.
pub const PATHS_PER_REQUEST_MAX: usize = 16_384;

/// Derivations in one submission. A million jobs are about 300 MiB of state. Passing it: the submission is refused.
pub const JOBS_PER_SUBMISSION_MAX: usize = 1_000_000;

/// Bytes of one line of evaluated jobs (`nix-eval-jobs`), which holds an attribute's `meta` and inputs too. Passing it: the file is refused.
pub const EVALUATED_LINE_BYTES_MAX: usize = 16 << 20;

/// Bytes of a build's name. It lives in replicated state and in every view. Passing it: the submission is refused.
pub const BUILD_NAME_BYTES_MAX: usize = 256;

/// Bytes of the name of an attribute that a root of a build is, or that does not evaluate. Names in nixpkgs have some 40. Passing it: a client
/// leaves the name out, and a submission that has it is refused.
pub const ATTRIBUTE_BYTES_MAX: usize = 512;

/// Attributes that one root of a build is. Passing it: as of [`ATTRIBUTE_BYTES_MAX`].
pub const ATTRIBUTES_PER_ROOT_MAX: usize = 8;

/// Bytes of all names of attributes of a build: those of a set as large as nixpkgs, twice. They live in replicated state until the build ends.
/// Passing it: as of [`ATTRIBUTE_BYTES_MAX`].
pub const ATTRIBUTES_BYTES_MAX: usize = 4 << 20;

/// Attributes that do not evaluate of which a build keeps what the evaluator said. Passing it: the others are counted.
pub const EVALUATION_ERRORS_MAX: usize = 512;

/// Bytes that a build keeps of what the evaluator said of an attribute. Passing it: the end is kept, which says what is wrong.
pub const EVALUATION_ERROR_BYTES_MAX: usize = 1024;

/// Job specifications in one log entry, so that no entry holds up the log: about 256 KiB of real ones.
pub const JOBS_PER_ENTRY_MAX: usize = 512;

/// Bytes of job specifications in one log entry; a job that has more by itself, which a `.drv` file of 4 MiB can make, is an entry of its own.
/// The log takes 64 MiB at a time.
pub const JOB_BYTES_PER_ENTRY_MAX: usize = 1 << 20;

/// Outputs of inputs that one job needs which is resolved before it is built. Each is a row of 700 bytes at most in the log entry that says what
/// it comes to, so that such an entry stays below 12 MiB of the log's 64; the largest real job needs about 2,000. Passing it: the submission is
/// refused.
pub const RESOLVED_INPUTS_PER_JOB_MAX: usize = 16_384;

/// Derivations, each made by the build of the one before, on the way from an input of a job to what the job needs of it. Nix' own tests have 2;
/// each takes a step of the log while the build goes on. Passing it: the submission is refused.
pub const DYNAMIC_DEPTH_MAX: usize = 64;

/// Jobs of one build after what its builders make has led to more. Twice a submission's. Passing it: the job that leads to them fails.
pub const JOBS_PER_BUILD_MAX: usize = 2 * JOBS_PER_SUBMISSION_MAX;

/// Times that what its builders make leads one build to more jobs: once for each job that needs such, and once more for each further step of
/// its chain. A builder can make what makes more without end. Passing it: the job that leads to more fails.
pub const GROWTHS_PER_BUILD_MAX: u32 = 65_536;

/// Growths of builds that a leader prepares at a time: each may stage a whole closure, of at most [`STAGES_MAX`]. What is over waits.
pub const GROWTHS_UNDER_WAY_MAX: usize = 8;

/// Jobs on the way to what holds one up that `kiln explain` names: a screen has room for about as many. The way's length in time counts all.
pub const EXPLAINED_STEPS_MAX: usize = 16;

/// Workers that `kiln explain` names of those that are the same to a job.
pub const EXPLAINED_WORKERS_MAX: usize = 8;

/// Bytes of a NAR that the farm stores or unpacks. Passing it: the upload is refused.
pub const NAR_BYTES_MAX: u64 = 64 << 30;

/// Bytes of the listing of one NAR (`.ls`), in memory and as JSON: about 200,000 objects. One NAR is listed at a time. Passing it: the farm serves
/// no listing of the NAR.
pub const LISTING_BYTES_MAX: u64 = 32 << 20;

/// Bytes of one zstd window that a decoder of ours allows (as a power of two): level 19 needs 8 MiB. Passing it: the blob is refused.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Bytes of log kept for one attempt. Passing it: the attempt ends as "limit exceeded".
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// Bytes of log in one message from a worker.
pub const LOG_CHUNK_BYTES_MAX: usize = 64 << 10;

/// Bytes of a failure's message. It lives in replicated state; the log holds the rest. What is longer is cut.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 2048;

/// Bytes of all outputs of one attempt, as NARs. Passing it: the attempt ends as "limit exceeded".
pub const OUTPUT_BYTES_MAX: u64 = 32 << 30;

/// Milliseconds without a heartbeat after which a worker counts as lost. Late loss is cheap, an early one repeats work.
pub const WORKER_SILENCE_MS_MAX: u64 = 15_000;

/// Milliseconds between two heartbeats of a worker: three fit in [`WORKER_SILENCE_MS_MAX`], and a thousand workers at rest cost a leader some 220
/// packets a second. Shorter than a quiet connection's own sign of life (`kiln-link`'s `KEEP_ALIVE`), so that a session needs none beside it.
pub const HEARTBEAT_MS: u64 = 4_500;

/// Bytes of what a worker says of why it takes nothing new. A few short sentences; a leader cuts what is longer.
pub const STRAIN_MESSAGE_BYTES_MAX: usize = 512;

/// Different workers on which a job may fail for infrastructure reasons before it is quarantined as poisoned.
pub const INFRASTRUCTURE_WORKERS_MAX: usize = 3;

/// Jobs that fail on a worker for infrastructure reasons, and on no other, since it last built one, before it rests.
pub const WORKER_FAILURES_MAX: usize = 3;

/// The same, with those that failed on other workers too: one job or the store may be to blame for many of them, but not for ever.
pub const WORKER_FAILURES_EXCUSED_MAX: usize = 12;

/// First rest of a worker on which jobs keep failing, in milliseconds; doubled each time up to [`WORKER_REST_MS_MAX`].
pub const WORKER_REST_MS_MIN: u64 = 20_000;

/// Longest rest of a worker, in milliseconds: what is mended meanwhile is used again within ten minutes.
pub const WORKER_REST_MS_MAX: u64 = 600_000;

/// Rests of a worker after each of which the first job failed again, before it is quarantined: with the failures that led to the first rest
/// a handful of jobs in two and a half minutes.
pub const WORKER_RESTS_MAX: u32 = 3;

/// Workers whose health is remembered: those with failures, and those that are drained. Machines of a cloud come with new names each day. What
/// is over: the worker without a registration that failed longest ago is forgotten.
pub const WORKERS_AILING_MAX: usize = 4_096;

/// First back-off after an infrastructure failure, in milliseconds; doubled each time up to [`RETRY_BACKOFF_MS_MAX`].
pub const RETRY_BACKOFF_MS_MIN: u64 = 1_000;

/// Longest back-off after an infrastructure failure, in milliseconds.
pub const RETRY_BACKOFF_MS_MAX: u64 = 300_000;

/// Milliseconds between the last interested build's cancellation and the kill, so that a client that reconnects loses nothing.
pub const CANCEL_GRACE_MS: u64 = 2_000;

/// Ended attempts that a job keeps for people to see; older ones leave the farm's state. Its retry counts stay exact.
pub const ATTEMPTS_KEPT_MAX: usize = 16;

/// Submissions whose jobs are staged at a time. Passing it: the one that was left alone longest is dropped, and its `Submit` is refused.
pub const STAGES_MAX: usize = 64;

/// Milliseconds that staged jobs may wait for the next entry or the `Submit` of their submission. Passing it: as for [`STAGES_MAX`].
pub const STAGE_MS_MAX: u64 = 3_600_000;

/// Numbers of retired and of dropped submissions that the farm remembers (of each), so that a request sent again is answered as before.
pub const REQUESTS_REMEMBERED_MAX: usize = 1_024;

/// Placements in one plan, so that an `Assign` stays far below [`FRAME_BYTES_MAX`]. What is left is in the next plan.
pub const PLACEMENTS_PER_PLAN_MAX: usize = 4_096;

/// Bytes of the arguments of one request of a Nix client, without what it streams after them: the names of half a million paths.
/// Passing it: the client is told, and its connection closed.
pub const NIX_REQUEST_BYTES_MAX: usize = 64 << 20;

/// Questions for narinfos that one upstream cache is asked at a time over HTTP/2, where they share a connection. What is over waits.
pub const UPSTREAM_QUERIES_MAX: usize = 2_048;

/// Questions that one upstream cache is asked at a time over HTTP/1, where each takes a connection; Nix takes 25. What is over waits.
pub const UPSTREAM_CONNECTIONS_MAX: usize = 32;

/// Archives that are fetched from one upstream cache at a time, for all submissions: each takes a processor to decompress. What is over waits.
pub const UPSTREAM_FETCHES_MAX: usize = 16;

/// Bytes of a narinfo or `nix-cache-info` of others. Passing it: what it describes is not taken.
pub const UPSTREAM_NARINFO_BYTES_MAX: usize = 1 << 20;

/// Paths of one submission that upstream caches have, with all that these refer to: a whole package set has fewer. Passing it: they are built.
pub const UPSTREAM_PATHS_MAX: usize = 500_000;

/// Answers "not here" of upstream caches that are remembered, about 100 bytes each. Passing it: the oldest is forgotten.
pub const UPSTREAM_ABSENT_MAX: usize = 500_000;

/// Milliseconds for which such an answer is believed: upstream may build the path meanwhile, and nobody builds the same set twice within minutes.
pub const UPSTREAM_ABSENT_MS_MAX: u64 = 600_000;

/// Failures of an upstream cache, one after the other, after which it is left alone for [`UPSTREAM_REST_MS`].
pub const UPSTREAM_FAILURES_MAX: u32 = 8;

/// Milliseconds for which an upstream cache that fails is asked nothing, so that no submission waits for it again and again.
pub const UPSTREAM_REST_MS: u64 = 30_000;

/// Milliseconds that one submission waits for answers of upstream caches, of which thousands come in a second. Passing it: what has not been
/// answered counts as nowhere, and is built.
pub const UPSTREAM_ASKING_MS_MAX: u64 = 300_000;

/// Bytes of an archive that an upstream cache must send in each second that it is waited for, after a minute. Passing it: it is not taken.
pub const UPSTREAM_BYTES_PER_SECOND_MIN: u64 = 256 << 10;

/// Milliseconds that the archive of a path may take as a whole, however large. Passing it: it is not taken.
pub const UPSTREAM_ARCHIVE_MS_MAX: u64 = 6 * 3_600_000;

/// Bytes of a NAR that nobody signed and that is believed for its content: anybody can say that it is large. Passing it: it is not taken.
pub const UPSTREAM_UNSIGNED_NAR_BYTES_MAX: u64 = 1 << 30;

/// Bytes of the `URL` in a narinfo of others; real ones have about a hundred. Passing it: what it describes is not taken.
pub const UPSTREAM_URL_BYTES_MAX: usize = 1 << 10;

/// Redirects that are followed to a file of an upstream cache: those on buckets use one. Passing it: the file counts as not to be had.
pub const UPSTREAM_REDIRECTS_MAX: usize = 5;

/// Paths that one collection of garbage looks at: what the store holds, and what that names. Each takes some 200 bytes of the leader's memory.
/// Passing it: the collection ends before it has deleted anything.
pub const GARBAGE_PATHS_MAX: usize = 4_000_000;

/// Published paths that a leader knows by heart, so that it asks the store for none of those that it lacks: about 50 bytes of its memory each.
/// Passing it: it asks for each.
pub const PATHS_KNOWN_MAX: usize = 2_000_000;

/// Different paths and blobs that a leader remembers somebody asked for within one period of grace, about 60 bytes each. Passing it: no
/// collection begins until a period has passed without that.
pub const TOUCHED_MAX: usize = 2_000_000;

/// Objects that are condemned at a time, so that whoever asks for one of them waits for a moment only.
pub const CONDEMNED_MAX: usize = 512;

/// Paths that one name pins, or one client holds. Passing it: the request is refused.
pub const PINNED_PATHS_MAX: usize = 65_536;

/// Bytes of a pin's name. Passing it: the request is refused.
pub const PIN_NAME_BYTES_MAX: usize = 4096;

/// Milliseconds for which what a client holds is kept after it was said last: longer than a client is without a leader, or asleep for a
/// moment; who dies leaves nothing behind for longer.
pub const HELD_MS: u64 = 3_600_000;

/// Archives that clients upload over HTTP at a time: each takes a processor to decompress. What is over waits.
pub const UPLOADS_MAX: usize = 8;

/// Archives that were uploaded over HTTP and whose narinfo has not come. Each may hold a MiB of memory. Passing it: the oldest is forgotten.
pub const UPLOADS_STAGED_MAX: usize = 256;

/// Bytes that such archives take on disk. Passing it: the oldest is forgotten.
pub const UPLOADS_STAGED_BYTES_MAX: u64 = 128 << 30;

/// Seconds that such an archive waits for its narinfo. Passing it: it is forgotten.
pub const UPLOAD_STAGED_SECONDS_MAX: u64 = 3600;

/// Archives that are compressed anew at a time for clients that read no zstd: each takes a processor. What is over waits.
pub const TRANSCODED_MAX: usize = 2;

/// Archives that are being sent so at a time, also to clients that are waited for: each takes a thread and some 4 MiB of memory. What is over
/// waits.
pub const TRANSCODED_OPEN_MAX: usize = 64;

/// Requests that wait for such a turn. Passing it: they are told to come again.
pub const TRANSCODED_WAITING_MAX: usize = 64;

/// Bytes of memory that the entries of open directories take while a tree is hashed as Git does, for a tree's size is hashed before its
/// entries: some 200,000 entries. Passing it: what is to be addressed so is refused.
pub const GIT_TREES_BYTES_MAX: usize = 64 << 20;

/// Packages, by name and system, of which a farm remembers durations and sizes, about 400 bytes each: a whole package set for two systems.
/// Passing it: the one that was built longest ago is forgotten.
pub const PACKAGES_REMEMBERED_MAX: usize = 65_536;

/// Derivations whose own durations a farm remembers, about 100 bytes each. Passing it: the one that was built longest ago is forgotten.
pub const DERIVATIONS_REMEMBERED_MAX: usize = 65_536;

/// Versions of one package that are told apart. Passing it: the one that was built longest ago is forgotten.
pub const VERSIONS_PER_PACKAGE_MAX: usize = 4;

/// Durations in one log entry or request: about 100 bytes each. Passing it: the request is refused.
pub const DURATIONS_PER_ENTRY_MAX: usize = 1_024;

/// Bytes of a package's name, its version or its system that durations are remembered under. A derivation's name has 211 at most. Passing it:
/// the request is refused.
pub const PACKAGE_NAME_BYTES_MAX: usize = 211;

/// Workers that a farm remembers to have a job's outputs. Passing it: all count as having them.
pub const HOLDERS_MAX: usize = 8;

/// Bytes of a job's outputs, as NARs, from which on it is remembered who has them: less is fetched before anybody has thought about it.
pub const HELD_BYTES_MIN: u64 = 4 << 20;

/// Projects of tenants whose use of the farm is remembered, about 200 bytes each. Passing it: the one that used it longest ago is forgotten,
/// which lets it begin anew.
pub const ACCOUNTS_REMEMBERED_MAX: usize = 4_096;

/// Shares that are set, about 150 bytes each. Passing it: the request is refused.
pub const SHARES_MAX: usize = 4_096;

/// Milliseconds after which what somebody used of the farm counts half. A few builds of the usual length: who used much this morning does not
/// pay for it in the afternoon.
pub const USAGE_HALF_LIFE_MS: u64 = 3_600_000;

/// Milliseconds that a build waits before it ages. Longer than nearly all builds take: until then urgency decides what is built first.
pub const AGEING_MS_MIN: u64 = 12 * 3_600_000;

/// Milliseconds of age, after [`AGEING_MS_MIN`], for each step of priority that a build rises. Builds that are submitted within one step are
/// of one age.
pub const AGEING_STEP_MS: u64 = 3_600_000;

/// Points that a build rises with each step of age: from the least to the highest priority in 20 hours.
pub const AGEING_POINTS: u64 = 10;

/// Milliseconds for which an attempt has run at most that ends early for the security class: what is lost stays small.
pub const PREEMPTED_MS_MAX: u64 = 300_000;

/// Times that one job makes room for the security class.
pub const PREEMPTIONS_PER_JOB_MAX: usize = 2;

/// Jobs of the security class for which one plan makes room, so that what it looks at is bounded. What is left is in the next plan.
pub const PREEMPTING_PER_PLAN_MAX: usize = 64;

/// Bytes of who steered a build or a job, as its message names them.
pub const STEERED_BY_BYTES_MAX: usize = 128;

/// Requests to the HTTP API that are answered at a time, streams aside: each holds a page in memory. Passing it: who asks is told to come
/// again.
pub const API_REQUESTS_MAX: usize = 128;

/// Requests that change something, answered at a time: whoever looks takes none of these. Passing it: who asks is told to come again.
pub const API_STEERS_MAX: usize = 32;

/// Requests that want no token (logging in, the document), answered at a time: strangers take no turn of others. Passing it: who asks is told
/// to come again.
pub const API_OPEN_REQUESTS_MAX: usize = 64;

/// Explanations of jobs that wait for the one that is made. Passing it: who asks is told to come again.
pub const API_EXPLANATIONS_WAITING_MAX: usize = 8;

/// Explanations that are remembered for a second, some tens of KiB each. Passing it: all are made anew.
pub const API_EXPLANATIONS_REMEMBERED_MAX: usize = 64;

/// Streams of events and of logs that are followed at a time, about 20 KiB each. Passing it: who asks is told to come again.
pub const API_STREAMS_MAX: usize = 1_024;

/// Streams of one token, or of all who have none. Passing it: who asks is told to come again.
pub const API_STREAMS_PER_TOKEN_MAX: usize = 256;

/// Bytes of a stream that are made at a time: what comes after them is made when these are taken.
pub const API_STREAM_PIECE_BYTES: usize = 64 << 10;

/// Jobs in one page of the HTTP API: some hundred bytes each. Passing it: the request is refused.
pub const API_JOBS_PER_PAGE_MAX: usize = 1_000;

/// Jobs that a page looks at while nothing is applied to the farm: well below a millisecond. What is left is looked at after that.
pub const API_JOBS_PER_LOOK_MAX: usize = 2_048;

/// Jobs that one request looks at: those of the largest builds. Passing it: the page ends there, and its cursor goes on.
pub const API_JOBS_PER_REQUEST_MAX: usize = 131_072;

/// Builds in one page of the HTTP API. Passing it: the request is refused.
pub const API_BUILDS_PER_PAGE_MAX: usize = 200;

/// Records of ended builds that one page looks at. Passing it: the page ends there, and its cursor goes on.
pub const API_RECORDS_PER_REQUEST_MAX: usize = 512;

/// Records of ended builds that one page has read from the archive: those of a usual page. Passing it: the page ends there, and its cursor goes
/// on.
pub const API_RECORDS_READ_PER_REQUEST_MAX: usize = 64;

/// Ended builds that a coordinator remembers for its lists, about 300 bytes each. Passing it: the oldest is read again.
pub const API_RECORDS_REMEMBERED_MAX: usize = 16_384;

/// Bytes of what is sent to the HTTP API. Passing it: the request is refused.
pub const API_BODY_BYTES_MAX: usize = 4_096;

/// Bytes of what is searched for. Passing it: the request is refused.
pub const API_SEARCH_BYTES_MAX: usize = 211;

/// Jobs of each reason that the plan's report names.
pub const API_EXAMPLES_MAX: usize = 10;

/// Inputs that a job names. What is left is counted.
pub const API_INPUTS_MAX: usize = 1_000;

/// Bytes of a log's line that is told at once when it is followed. What is longer comes in pieces.
pub const API_LINE_BYTES_MAX: usize = 16 << 10;

/// Events that a coordinator remembers for streams that come back, some hundred bytes each: minutes of a busy farm. Passing it: the oldest is
/// forgotten, and who needs it asks anew.
pub const API_EVENTS_REMEMBERED_MAX: usize = 16_384;

/// Jobs whose changes are told one by one in a fifth of a second. Passing it: their number is told.
pub const API_EVENTS_PER_BATCH_MAX: usize = 512;

/// Ended attempts that a coordinator remembers for its timeline, about 300 bytes each. What is beyond is forgotten, oldest first.
pub const SPANS_REMEMBERED_MAX: usize = 20_000;

/// Failures that a coordinator remembers for its overview; each has a message of at most [`FAILURE_MESSAGE_BYTES_MAX`]. What is beyond is
/// forgotten, oldest first.
pub const FAILURES_REMEMBERED_MAX: usize = 2_000;

/// Hundredths of all slots that second attempts at jobs hold at most, and one slot at least: what they cost stays small.
pub const COPY_SLOTS_PERCENT_MAX: u64 = 4;

/// Milliseconds for which an attempt has run before a second one is thought of: what is shorter is not worth a transfer.
pub const COPIED_MS_MIN: u64 = 10_000;

/// Notices that wait in replicated state for whoever is told by webhook, about 200 bytes each: days of a farm whose receivers are away. Passing it:
/// the oldest is given up, which is logged and counted.
pub const NOTICES_MAX: usize = 2_048;

/// Receivers of webhooks. Passing it: the configuration is refused.
pub const RECEIVERS_MAX: usize = 16;

/// Bytes of the name of a receiver. Passing it: the configuration is refused.
pub const RECEIVER_NAME_BYTES_MAX: usize = 64;

/// Bytes of one message to a receiver of webhooks; lists in it are cut so that it stays below.
pub const WEBHOOK_BODY_BYTES_MAX: usize = 256 << 10;

/// Jobs that one message to a receiver names in a list.
pub const WEBHOOK_JOBS_MAX: usize = 100;

/// Tries of one message, before it is given up: with the pauses between them some four hours.
pub const WEBHOOK_TRIES_MAX: u32 = 24;

/// Shortest and longest pause, in milliseconds, between two tries of a message; it doubles from try to try, and up to half of it is added
/// by chance, so that receivers are not asked by all at once.
pub const WEBHOOK_PAUSE_MS: (u64, u64) = (1_000, 600_000);

/// Milliseconds that one try of a message may take as a whole.
pub const WEBHOOK_TRY_MS_MAX: u64 = 15_000;
